#include "snapshot/retention.h"

#include <algorithm>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

const absl::TimeZone kUtc = absl::UTCTimeZone();
const absl::Time kNow = absl::FromCivil(absl::CivilSecond(2026, 11, 21, 12, 0, 0), kUtc);

RetentionCandidate At(absl::string_view text, std::string session = "web") {
  absl::Time point;
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d %H:%M", text, kUtc, &point, &error)) << error;
  return {.id = absl::StrCat(session, " ", text), .machine = std::move(session), .point = point, .labels = {}};
}

std::set<std::string> Kept(const std::vector<RetentionCandidate>& candidates, const RetentionPolicy& policy,
                           absl::Time now = kNow, absl::TimeZone zone = kUtc) {
  absl::StatusOr<std::vector<RetentionVerdict>> verdicts = DecideRetention(candidates, policy, now, zone);
  EXPECT_TRUE(verdicts.ok()) << verdicts.status();
  EXPECT_EQ(verdicts->size(), candidates.size());
  std::set<std::string> kept;
  for (size_t i = 0; i < verdicts->size(); ++i) {
    const RetentionVerdict& verdict = (*verdicts)[i];
    EXPECT_EQ(verdict.id, candidates[i].id);
    EXPECT_FALSE(verdict.reasons.empty()) << "nothing is kept or dropped without a reason";
    if (verdict.keep) kept.insert(verdict.id);
  }
  return kept;
}

TEST(RetentionTest, KeepsTheNewestOfEachPeriod) {
  std::vector<RetentionCandidate> all = {At("2026-11-21 11:00"), At("2026-11-21 10:00"), At("2026-11-20 23:59"),
                                         At("2026-11-20 00:00"), At("2026-11-15 08:00"), At("2026-10-31 08:00"),
                                         At("2025-12-31 08:00"), At("2025-01-01 08:00")};
  EXPECT_THAT(Kept(all, {.last = 2}), UnorderedElementsAre("web 2026-11-21 11:00", "web 2026-11-21 10:00"));
  EXPECT_THAT(Kept(all, {.daily = 3}),
              UnorderedElementsAre("web 2026-11-21 11:00", "web 2026-11-20 23:59", "web 2026-11-15 08:00"));
  // 2026-11-15 is a Sunday: it belongs to the week before that of the 16th.
  EXPECT_THAT(Kept(all, {.weekly = 2}), UnorderedElementsAre("web 2026-11-21 11:00", "web 2026-11-15 08:00"));
  EXPECT_THAT(Kept(all, {.monthly = 2}), UnorderedElementsAre("web 2026-11-21 11:00", "web 2026-10-31 08:00"));
  EXPECT_THAT(Kept(all, {.yearly = 5}), UnorderedElementsAre("web 2026-11-21 11:00", "web 2025-12-31 08:00"));
  EXPECT_THAT(Kept(all, {.hourly = kKeepAll}), ::testing::SizeIs(all.size()));
  EXPECT_THAT(Kept(all, {.last = 1, .yearly = 2}),
              UnorderedElementsAre("web 2026-11-21 11:00", "web 2025-12-31 08:00"));
}

TEST(RetentionTest, WhatIsInUseIsKeptAndCountsAsBefore) {
  std::vector<RetentionCandidate> all = {At("2026-11-21 11:00"), At("2026-11-21 10:00"), At("2026-11-20 23:59")};
  all[2].in_use = "session copy reads its disks from it";
  EXPECT_THAT(Kept(all, {.last = 1}), UnorderedElementsAre(all[0].id, all[2].id));
  EXPECT_THAT(DecideRetention(all, {.last = 1}, kNow, kUtc).value()[2].reasons, ElementsAre(all[2].in_use));
}

TEST(RetentionTest, EachSessionIsDecidedAlone) {
  std::vector<RetentionCandidate> all = {At("2026-11-21 11:00", "a"), At("2026-11-01 11:00", "b"),
                                         At("2026-11-02 11:00", "b")};
  EXPECT_THAT(Kept(all, {.last = 1}), UnorderedElementsAre("a 2026-11-21 11:00", "b 2026-11-02 11:00"));
}

TEST(RetentionTest, SaysWhy) {
  RetentionCandidate held = At("2026-11-19 08:00");
  held.labels = {{"hold", ""}, {"team", "db"}};
  std::vector<RetentionCandidate> all = {At("2026-11-21 11:00"), At("2026-11-21 10:00"), held, At("2026-11-18 08:00")};
  RetentionPolicy policy{.last = 1, .daily = 2, .labels = {{"team", ""}}, .minimum_age = absl::Minutes(90)};
  std::vector<RetentionVerdict> verdicts = *DecideRetention(all, policy, kNow, kUtc);
  EXPECT_THAT(verdicts[0].reasons,
              ElementsAre("younger than 1h30m", "last: number 1 of 1", "daily: newest of 2026-11-21, number 1 of 2"));
  EXPECT_FALSE(verdicts[1].keep);
  EXPECT_THAT(verdicts[1].reasons, ElementsAre("last: 1 are newer", "daily: web 2026 is newer in 2026-11-21"));
  EXPECT_THAT(verdicts[2].reasons, ElementsAre("held", "label team=db", "daily: newest of 2026-11-19, number 2 of 2"));
  EXPECT_THAT(verdicts[3].reasons, ElementsAre("last: 3 are newer", "daily: 2 periods with snapshots are newer"));
}

TEST(RetentionTest, DaysAreThoseOfTheTimeZone) {
  absl::TimeZone tokyo;
  ASSERT_TRUE(absl::LoadTimeZone("Asia/Tokyo", &tokyo));
  // 20:00 and 14:00 UTC of one day are 05:00 of the next day and 23:00 in Tokyo.
  std::vector<RetentionCandidate> all = {At("2026-11-20 20:00"), At("2026-11-20 14:00")};
  EXPECT_THAT(Kept(all, {.daily = 9}), ::testing::SizeIs(1));
  EXPECT_THAT(Kept(all, {.daily = 9}, kNow, tokyo), ::testing::SizeIs(2));
}

TEST(RetentionTest, TheHourThatWinterTimeRepeatsIsTwoHours) {
  absl::TimeZone berlin;
  ASSERT_TRUE(absl::LoadTimeZone("Europe/Berlin", &berlin));
  // 2026-10-25 00:30 and 01:30 UTC are both 02:30 there.
  std::vector<RetentionCandidate> all = {At("2026-10-25 00:30"), At("2026-10-25 01:30"), At("2026-10-25 00:10")};
  EXPECT_THAT(Kept(all, {.hourly = 9}, kNow, berlin),
              UnorderedElementsAre("web 2026-10-25 00:30", "web 2026-10-25 01:30"));
}

TEST(RetentionTest, SnapshotsFromTheFutureAreKeptAndDoNotCount) {
  std::vector<RetentionCandidate> all = {At("2030-01-01 00:00"), At("2026-11-21 11:00"), At("2026-11-21 10:00")};
  EXPECT_THAT(Kept(all, {.last = 1}), UnorderedElementsAre("web 2030-01-01 00:00", "web 2026-11-21 11:00"));
}

TEST(RetentionTest, APolicyThatWouldDropEverythingIsRefused) {
  for (const RetentionPolicy& policy :
       {RetentionPolicy{}, RetentionPolicy{.labels = {{"a", ""}}}, RetentionPolicy{.minimum_age = absl::Hours(1)},
        RetentionPolicy{.last = 1, .daily = -1}, RetentionPolicy{.last = 1, .minimum_age = -absl::Hours(1)}}) {
    EXPECT_EQ(DecideRetention({}, policy, kNow, kUtc).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(RetentionTest, ParsesAndFormats) {
  absl::StatusOr<RetentionPolicy> policy =
      ParseRetention("last=3, hourly=24 daily=7 weekly=5 monthly=12 yearly=all label=keep label=team=db min-age=2d");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(*policy, (RetentionPolicy{.last = 3,
                                      .hourly = 24,
                                      .daily = 7,
                                      .weekly = 5,
                                      .monthly = 12,
                                      .yearly = kKeepAll,
                                      .labels = {{"keep", ""}, {"team", "db"}},
                                      .minimum_age = absl::Hours(48)}));
  EXPECT_EQ(FormatRetention(*policy),
            "last=3 hourly=24 daily=7 weekly=5 monthly=12 yearly=all label=keep label=team=db min-age=172800s");
  EXPECT_EQ(*ParseRetention(FormatRetention(*policy)), *policy);
  for (const char* bad : {"", "last", "last=", "last=-1", "last=x", "last=99999999999", "dayly=3", "min-age=3",
                          "last=1 min-age=-3h", "last=1 min-age=h", "last=1 label=", "last=0", "label=x", "=3"}) {
    absl::Status status = ParseRetention(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(status.message(), HasSubstr("retention")) << bad;
  }
}

// Random histories and policies, from a printed seed.
class RetentionProperty : public ::testing::TestWithParam<uint64_t> {
 protected:
  int Below(int limit) { return static_cast<int>(random_() % static_cast<uint64_t>(limit)); }
  std::vector<RetentionCandidate> History() {
    std::vector<RetentionCandidate> all;
    for (int i = Below(60); i > 0; --i) {
      RetentionCandidate candidate{
          .id = absl::StrCat("id", i), .machine = absl::StrCat("s", Below(3)), .point = kNow, .labels = {}};
      // Clustered, with equal times now and then, and some in the future.
      static constexpr int kScales[] = {60, 3600, 86400, 86400 * 30, 86400 * 900};
      candidate.point -= absl::Seconds(Below(kScales[Below(5)]) / 30 * 30 - 20);
      if (Below(10) == 0) candidate.labels[std::string(kHoldLabel)] = "";
      if (Below(5) == 0) candidate.labels["team"] = Below(2) == 0 ? "db" : "web";
      all.push_back(std::move(candidate));
    }
    std::shuffle(all.begin(), all.end(), random_);
    return all;
  }
  RetentionPolicy Policy() {
    RetentionPolicy policy;
    for (int RetentionPolicy::*count : kCounts) {
      if (Below(2) == 0) policy.*count = Below(6);
    }
    policy.last = 1 + Below(4);
    if (Below(3) == 0) policy.labels.push_back({"team", Below(2) == 0 ? "" : "db"});
    if (Below(3) == 0) policy.minimum_age = absl::Hours(Below(100));
    return policy;
  }
  static constexpr int RetentionPolicy::*kCounts[] = {&RetentionPolicy::last,    &RetentionPolicy::hourly,
                                                      &RetentionPolicy::daily,   &RetentionPolicy::weekly,
                                                      &RetentionPolicy::monthly, &RetentionPolicy::yearly};
  std::mt19937_64 random_{GetParam()};
};

TEST_P(RetentionProperty, HeldLabelledAndYoungOnesAreNeverDropped) {
  for (int round = 0; round < 50; ++round) {
    std::vector<RetentionCandidate> all = History();
    RetentionPolicy policy = Policy();
    std::set<std::string> kept = Kept(all, policy);
    for (const RetentionCandidate& candidate : all) {
      bool must = candidate.labels.contains("hold") || kNow - candidate.point < policy.minimum_age;
      for (const auto& [key, value] : policy.labels) {
        auto label = candidate.labels.find(key);
        must = must || (label != candidate.labels.end() && (value.empty() || value == label->second));
      }
      ASSERT_TRUE(!must || kept.contains(candidate.id)) << FormatRetention(policy);
    }
  }
}

TEST_P(RetentionProperty, TheLastNAreKept) {
  for (int round = 0; round < 50; ++round) {
    std::vector<RetentionCandidate> all = History();
    RetentionPolicy policy = Policy();
    std::set<std::string> kept = Kept(all, policy);
    for (const RetentionCandidate& candidate : all) {
      auto newer = std::count_if(all.begin(), all.end(), [&](const RetentionCandidate& other) {
        return other.machine == candidate.machine && other.point <= kNow && other.point > candidate.point;
      });
      auto equal = std::count_if(all.begin(), all.end(), [&](const RetentionCandidate& other) {
        return other.machine == candidate.machine && other.point == candidate.point;
      });
      if (newer + equal <= policy.last) {
        ASSERT_TRUE(kept.contains(candidate.id)) << FormatRetention(policy);
      }
    }
  }
}

TEST_P(RetentionProperty, MoreRulesAndLargerNumbersNeverDropMore) {
  for (int round = 0; round < 50; ++round) {
    std::vector<RetentionCandidate> all = History();
    RetentionPolicy policy = Policy();
    std::set<std::string> before = Kept(all, policy);
    RetentionPolicy more = policy;
    switch (Below(3)) {
      case 0:
        more.*kCounts[Below(6)] += 1 + Below(3);
        break;
      case 1:
        more.labels.push_back({"team", "web"});
        break;
      default:
        more.minimum_age += absl::Hours(Below(1000));
    }
    std::set<std::string> after = Kept(all, more);
    ASSERT_TRUE(std::includes(after.begin(), after.end(), before.begin(), before.end()))
        << FormatRetention(policy) << " -> " << FormatRetention(more);
  }
}

// Forgetting what a policy drops and asking again drops nothing more: running it twice is running it once.
TEST_P(RetentionProperty, ASecondRunDropsNothing) {
  for (int round = 0; round < 50; ++round) {
    std::vector<RetentionCandidate> all = History();
    RetentionPolicy policy = Policy();
    std::set<std::string> kept = Kept(all, policy);
    std::vector<RetentionCandidate> left;
    for (const RetentionCandidate& candidate : all) {
      if (kept.contains(candidate.id)) left.push_back(candidate);
    }
    ASSERT_EQ(Kept(left, policy).size(), left.size()) << FormatRetention(policy);
  }
}

TEST_P(RetentionProperty, NoRuleKeepsMoreThanItsNumber) {
  for (int round = 0; round < 50; ++round) {
    std::vector<RetentionCandidate> all = History();
    for (RetentionCandidate& candidate : all) {
      candidate.labels.clear();
      candidate.machine = "one";
      candidate.point = std::min(candidate.point, kNow);
    }
    RetentionPolicy policy = Policy();
    policy.minimum_age = absl::ZeroDuration();
    int most = 0;
    for (int RetentionPolicy::*count : kCounts) most += policy.*count;
    ASSERT_LE(Kept(all, policy).size(), static_cast<size_t>(most)) << FormatRetention(policy);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RetentionProperty, ::testing::Range<uint64_t>(1, 9));

}  // namespace
}  // namespace still::snapshot
