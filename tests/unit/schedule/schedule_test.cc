// Definitions: what is refused, and that the catalog gives back what it was given.
#include "schedule/schedule.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

using ::testing::HasSubstr;

schedulepb::Schedule Nightly() {
  schedulepb::Schedule definition;
  definition.set_name("nightly");
  definition.add_sessions("web-*");
  definition.add_calendar("*-*-* 02:00");
  definition.set_zone("Europe/Berlin");
  definition.set_retention("daily=7");
  definition.set_counted_from_unix_ns(1'700'000'000'000'000'000);
  return definition;
}

TEST(ScheduleTest, TheCatalogGivesBackWhatItWasGiven) {
  schedulepb::Schedule definition = Nightly();
  definition.add_blackouts("Mon..Fri 08:00-18:00");
  definition.set_paused(true);
  (*definition.mutable_labels())["tier"] = "gold";
  Schedule schedule = *MakeSchedule(definition, absl::UTCTimeZone());
  store::ScheduleRow row = *ToRow(schedule);
  EXPECT_EQ(row.session, "web-*");
  EXPECT_EQ(row.retention, "daily=7");
  EXPECT_FALSE(row.enabled);
  Schedule again = *FromRow(row, absl::UTCTimeZone());
  EXPECT_EQ(again.definition.SerializeAsString(), definition.SerializeAsString());
  EXPECT_EQ(again.retention->daily, 7);
  row.settings = "{";
  EXPECT_EQ(FromRow(row, absl::UTCTimeZone()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ScheduleTest, WhatIsWrongIsNamed) {
  struct Case {
    void (*spoil)(schedulepb::Schedule&);
    const char* named;
  };
  const Case cases[] = {
      {[](auto& s) { s.set_name("No Good"); }, "No Good"},
      {[](auto& s) { s.set_calendar(0, "*-13-1"); }, "month"},
      {[](auto& s) { s.set_every("1h"); }, "either"},
      {[](auto& s) { s.clear_calendar(); }, "either"},
      {[](auto& s) { s.set_zone("Mars/Base"); }, "Mars/Base"},
      {[](auto& s) { s.set_jitter("soon"); }, "soon"},
      {[](auto& s) { s.set_missed("sometimes"); }, "sometimes"},
      {[](auto& s) { s.set_retention("daily"); }, "daily"},
      {[](auto& s) { s.clear_sessions(); }, "sessions"},
      {[](auto& s) { s.set_check("true"); }, "drill"},
      {[](auto& s) { s.set_quiesce("perhaps"); }, "perhaps"},
      {[](auto& s) { s.set_memory("perhaps"); }, "memory"},
      {[](auto& s) { s.set_max_pause("a while"); }, "a while"},
      {[](auto& s) {
         s.set_track_memory(true);
         s.set_disk_only(true);
       },
       "with memory"},
  };
  for (const Case& c : cases) {
    schedulepb::Schedule definition = Nightly();
    c.spoil(definition);
    absl::Status status = MakeSchedule(definition, absl::UTCTimeZone()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_THAT(status.message(), HasSubstr(c.named));
  }
}

TEST(ScheduleTest, TheDeadMansLimitFollowsTheTiming) {
  absl::Time now = absl::FromUnixSeconds(1'760'000'000);
  EXPECT_EQ(MakeSchedule(Nightly(), absl::UTCTimeZone())->MaxAge(now), absl::Hours(50)) << "a day of 25 hours is ahead";
  schedulepb::Schedule definition = Nightly();
  definition.set_max_age("36h");
  EXPECT_EQ(MakeSchedule(definition, absl::UTCTimeZone())->MaxAge(now), absl::Hours(36));
}

TEST(PatternTest, StarsAndQuestionMarks) {
  EXPECT_TRUE(MatchesPattern("web-1", "web-*"));
  EXPECT_TRUE(MatchesPattern("web-1", "*"));
  EXPECT_TRUE(MatchesPattern("web-1", "w*b-?"));
  EXPECT_TRUE(MatchesPattern("aXbXc", "a*X*c"));
  EXPECT_FALSE(MatchesPattern("web-1", "web"));
  EXPECT_FALSE(MatchesPattern("web", "web-*"));
  EXPECT_FALSE(MatchesPattern("web-12", "web-?"));
}

}  // namespace
}  // namespace still::schedule
