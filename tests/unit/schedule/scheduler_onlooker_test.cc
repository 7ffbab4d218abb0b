// Scheduler: whoever only looks, and what it makes of those who should work; and schedules that a lost book had.
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/lost_schedules.h"
#include "schedule/scheduler.h"
#include "tests/unit/schedule/scheduler_fixture.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using ::testing::Contains;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// `still schedule check` where nothing listens on stilld's socket.
class OnlookerTest : public SchedulerTest {
 protected:
  void BeginAs(bool daemon) { Begin({.daemon = daemon}); }
  // What it finds wrong with the schedules themselves, or nothing.
  std::string Look() {
    Scheduler check(book_, host_, listener_, clock_, {});
    check.OnlyLook();
    EXPECT_TRUE(check.Recover().ok());
    EXPECT_TRUE(check.Step().ok());
    while (check.Telling()) {
    }
    for (const auto& [key, alert] : check.alerts().all()) {
      if (alert.event.kind == Event::Kind::kScheduler && !alert.over.has_value() && !alert.quiet) {
        return alert.event.message;
      }
    }
    return "";
  }
};

TEST_F(OnlookerTest, ADaemonThatIsGoneIsTroubleAlsoWhileAllIsYoung) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  BeginAs(/*daemon=*/true);
  Live(absl::Hours(3));
  Crash(true);
  Sleep(absl::Minutes(2));
  EXPECT_EQ(Look(), "") << "it may have been there just now";
  Sleep(absl::Minutes(30));
  listener_.all_well = 0;
  EXPECT_THAT(Look(), HasSubstr("stilld does not run"));
  EXPECT_EQ(listener_.Count(Event::Kind::kScheduler), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
  EXPECT_EQ(listener_.all_well, 0);
  BeginAs(/*daemon=*/true);
  Live(absl::Minutes(10));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1);
  EXPECT_EQ(Look(), "");
}

TEST_F(OnlookerTest, WhatWasToldWhileStilldHungAndIsOverBeforeItsNextTurnIsToldToBeOver) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  BeginAs(/*daemon=*/true);
  Live(absl::Minutes(10));
  Sleep(absl::Hours(1));  // It hangs.
  host_.machines = {{"web", false}};
  host_.ended = {{"web", "its hypervisor crashed"}};
  Look();
  EXPECT_EQ(listener_.Count(Event::Kind::kEnded), 1);
  host_.machines = {{"web", true}};
  host_.ended.clear();
  listener_.events.clear();
  Live(absl::Minutes(10));
  EXPECT_THAT(listener_.events, Contains(Field(&Event::message, HasSubstr("web runs again"))));
}

TEST_F(OnlookerTest, ASecondEndIsToldThoughStilldHungWhenTheFirstWasToldToBeOver) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  BeginAs(/*daemon=*/true);
  Live(absl::Minutes(10));
  const auto end = [this] {
    host_.machines = {{"web", false}};
    host_.ended = {{"web", "its hypervisor crashed"}};
  };
  end();
  Live(absl::Minutes(10));
  EXPECT_EQ(listener_.Count(Event::Kind::kEnded), 1);
  Sleep(absl::Hours(1));  // It hangs.
  host_.machines = {{"web", true}};
  host_.ended.clear();
  for (int looks = 0; looks < 2; ++looks) {
    Look();
    Sleep(absl::Hours(1));
  }
  EXPECT_THAT(listener_.events, Contains(Field(&Event::message, HasSubstr("web runs again"))));
  end();
  Live(absl::Minutes(10));
  EXPECT_EQ(listener_.Count(Event::Kind::kEnded), 2);
}

// Each look is a process of its own, which knows only what the book says.
TEST_F(OnlookerTest, LooksTellAlsoAfterTheClockWasSetBack) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Sleep(absl::Hours(2));
  clock_.skew = absl::Hours(24 * 300);
  listener_.broken = {"pager"};
  Look();
  clock_.skew = absl::ZeroDuration();
  listener_.broken.clear();
  for (int hour = 0; hour < 2; ++hour) {
    Sleep(absl::Hours(1));
    Look();
  }
  EXPECT_EQ(listener_.Count(Event::Kind::kScheduler), 1);
  // And says it again a day later, however far ahead the clock was when it was told.
  clock_.skew = absl::Hours(24 * 300);
  Sleep(absl::Hours(30));
  Look();
  const int told = listener_.Count(Event::Kind::kScheduler);
  clock_.skew = absl::ZeroDuration();
  for (int hour = 0; hour < 30; ++hour) {
    Sleep(absl::Hours(1));
    Look();
  }
  EXPECT_EQ(listener_.Count(Event::Kind::kScheduler), told + 1);
}

TEST_F(OnlookerTest, WhatIsDueAndNobodyBeginsIsTrouble) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  EXPECT_EQ(Look(), "") << "nothing is due yet";
  Sleep(absl::Minutes(63));
  EXPECT_EQ(Look(), "") << "a timer may come in a moment";
  Sleep(absl::Minutes(3));
  EXPECT_THAT(Look(), HasSubstr("nightly of web has been due for 6m"));
  EXPECT_EQ(listener_.Count(Event::Kind::kScheduler), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
  EXPECT_THAT(book_.rows, IsEmpty()) << "a look begins nothing";
  EXPECT_EQ(listener_.all_well, 0);
}

TEST_F(OnlookerTest, ATimerThatComesSeldomIsCalledDeadOnlyByWhatItLeavesUndone) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  for (int day = 0; day < 3; ++day) {
    for (int hour = 0; hour < 24; ++hour) {
      if (hour == 1) {  // run-due, daily.
        BeginAs(/*daemon=*/false);
        Live(absl::Minutes(4));
        Crash(true);
      } else {
        EXPECT_EQ(Look(), "");
      }
      clock_.true_time = absl::FromUnixSeconds((absl::ToUnixSeconds(clock_.true_time) / 3600 + 1) * 3600);
    }
  }
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(3));
  EXPECT_THAT(listener_.events, IsEmpty());
  Sleep(absl::Hours(2));
  EXPECT_THAT(Look(), HasSubstr("has been due")) << "and that it stays away is told";
}

TEST_F(OnlookerTest, NobodyIsCalledWellWithoutProofThatSomebodyWorks) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(listener_.all_well, 0);
  BeginAs(/*daemon=*/false);
  Live(absl::Minutes(1));
  Crash(true);
  listener_.all_well = 0;
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(listener_.all_well, 1);
  Sleep(absl::Minutes(10));
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(listener_.all_well, 1);
}

TEST_F(OnlookerTest, WhatIsNotMeantToRunIsMissedByNobody) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  BeginAs(/*daemon=*/true);
  Live(absl::Hours(3));
  Crash(true);
  Sleep(absl::Hours(24));
  ASSERT_NE(Look(), "");
  auto definition = book_.schedules[0].definition;
  definition.set_paused(true);
  book_.schedules[0] = *MakeSchedule(definition, absl::UTCTimeZone());
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 0) << "nobody works again";
}

TEST_F(OnlookerTest, AHostThatHasOnlyJustStartedIsGivenTime) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  const absl::Time now = clock_.true_time + absl::Hours(3);
  book_.remembered["turn"] = absl::StrCat(absl::ToUnixSeconds(clock_.true_time), " daemon");
  clock_.true_time = absl::UnixEpoch() + absl::Minutes(1);  // It has been up for so long.
  clock_.skew = now - clock_.true_time;
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(listener_.all_well, 0);
  Sleep(absl::Minutes(10));
  EXPECT_NE(Look(), "");
}

TEST_F(OnlookerTest, WhatWaitsForABlackoutOrForAnEarlierRunIsNotLeftUndone) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Hours(5); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.add_blackouts("Mon..Sun 00:30-01:30"); });
  book_.Add("other", "web", "01:20");
  BeginAs(/*daemon=*/false);
  Live(absl::Minutes(10));
  Crash(true);
  Sleep(absl::Minutes(82));
  EXPECT_THAT(Look(), HasSubstr("other of web")) << "nightly was not allowed to begin before";
  BeginAs(/*daemon=*/false);
  Live(absl::Minutes(1));
  Crash(/*with_workers=*/false);  // Its run goes on.
  Sleep(absl::Hours(3));
  EXPECT_EQ(Look(), "");
}

TEST_F(OnlookerTest, AScheduleOfAnEarlierBookIsToldUntilItIsBackOrRemoved) {
  host_.machines = {{"web", true}};
  book_.remembered[LostKey("nightly")] = "1766000000";
  book_.remembered[LostKey("weekly")] = "1766000000";
  Begin();
  Live(absl::Hours(30));
  EXPECT_EQ(listener_.Count(Event::Kind::kLost), 4) << "both, daily";
  EXPECT_THAT(listener_.events[0].message, HasSubstr("nightly took snapshots of this host until 2025-12-17"));
  EXPECT_EQ(listener_.all_well, 0);
  book_.Add("nightly", "web", "01:00");
  scheduler_->Reload();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1);
  book_.remembered.erase(LostKey("weekly"));  // As `still schedule rm weekly` does.
  scheduler_->Reload();
  Live(absl::Hours(1));
  EXPECT_TRUE(scheduler_->alerts().all().empty());
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1) << "nothing is better, only not wanted";
  EXPECT_GT(listener_.all_well, 0);
  EXPECT_EQ(book_.remembered.count(LostKey("nightly")), 0u) << "whoever removes it now means it";
}

}  // namespace
}  // namespace still::schedule
