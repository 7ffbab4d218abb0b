// Delays, blackouts, spans, intervals.
#include "schedule/timing.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

absl::TimeZone Berlin() {
  absl::TimeZone zone;
  EXPECT_TRUE(absl::LoadTimeZone("Europe/Berlin", &zone));
  return zone;
}
absl::Time At(int year, int month, int day, int hour, int minute) {
  return absl::FromCivil(absl::CivilSecond(year, month, day, hour, minute, 0), Berlin());
}

TEST(TimingTest, SpreadIsTheSameEachTimeAndUsesItsWholeWidth) {
  Timing timing{.every = absl::Hours(1), .spread = absl::Minutes(60)};
  std::set<int64_t> tenths;
  for (int vm = 0; vm < 200; ++vm) {
    std::string name = absl::StrCat("vm-", vm);
    absl::Duration delay = timing.Delay("nightly", name, At(2026, 1, 1, 0, 0));
    EXPECT_EQ(delay, timing.Delay("nightly", name, At(2026, 5, 5, 0, 0))) << "a session keeps its place";
    EXPECT_GE(delay, absl::ZeroDuration());
    EXPECT_LT(delay, timing.spread);
    tenths.insert(absl::ToInt64Minutes(delay) / 6);
  }
  EXPECT_EQ(tenths.size(), 10u);
}

TEST(TimingTest, JitterDiffersFromRunToRun) {
  Timing timing{.every = absl::Hours(1), .jitter = absl::Minutes(10)};
  std::set<absl::Duration> delays;
  for (int hour = 0; hour < 20; ++hour) {
    absl::Time planned = At(2026, 1, 1, hour, 0);
    delays.insert(timing.Delay("s", "web", planned));
    EXPECT_EQ(timing.Delay("s", "web", planned), timing.Delay("s", "web", planned));
  }
  EXPECT_GT(delays.size(), 15u);
  EXPECT_LT(*delays.rbegin(), absl::Minutes(10));
}

TEST(TimingTest, AnIntervalCountsFromTheEpochAlsoBeforeIt) {
  Timing timing{.every = absl::Minutes(15)};
  EXPECT_EQ(timing.Next(absl::FromUnixSeconds(0)), absl::FromUnixSeconds(900));
  EXPECT_EQ(timing.Next(absl::FromUnixSeconds(899)), absl::FromUnixSeconds(900));
  EXPECT_EQ(timing.Next(absl::FromUnixSeconds(900)), absl::FromUnixSeconds(1800));
}

TEST(TimingTest, SeveralExpressionsMeanTheNextOfAny) {
  Timing timing{.zone = Berlin()};
  for (const char* text : {"Mon 03:00", "Mon..Sat 01:00"}) timing.calendar.push_back(*CalendarExpression::Parse(text));
  absl::Time monday = At(2026, 1, 5, 0, 0);
  EXPECT_EQ(timing.Next(monday), At(2026, 1, 5, 1, 0));
  EXPECT_EQ(timing.Next(At(2026, 1, 5, 1, 0)), At(2026, 1, 5, 3, 0));
  EXPECT_EQ(timing.LongestGap(monday), absl::Hours(48)) << "Saturday to Monday";
}

TEST(BlackoutTest, ByDayOverMidnightAndOverTheClockChange) {
  Blackout office = *Blackout::Parse("Mon..Fri 08:00-18:00");
  EXPECT_EQ(office.Until(At(2026, 1, 5, 9, 0), Berlin()), At(2026, 1, 5, 18, 0));
  EXPECT_EQ(office.Until(At(2026, 1, 5, 18, 0), Berlin()), std::nullopt);
  EXPECT_EQ(office.Until(At(2026, 1, 4, 9, 0), Berlin()), std::nullopt) << "a Sunday";
  Blackout night = *Blackout::Parse("Sat 22:00-06:00");
  EXPECT_EQ(night.Until(At(2026, 3, 29, 1, 0), Berlin()), At(2026, 3, 29, 6, 0)) << "began on Saturday";
  EXPECT_EQ(night.Until(At(2026, 3, 30, 1, 0), Berlin()), std::nullopt);
  EXPECT_TRUE(Blackout::Parse("Fri..Mon 00:00-24:00")->Until(At(2026, 1, 4, 23, 59), Berlin()).has_value());
  for (const char* wrong : {"", "08:00", "8:00-9:00", "08:00-08:00", "Foo 08:00-09:00", "25:00-26:00", "08:61-09:00"}) {
    EXPECT_EQ(Blackout::Parse(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace still::schedule
