// Scheduler: one scenario each.
#include "schedule/scheduler.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/schedule/scheduler_fixture.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using store::RunRow;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST_F(SchedulerTest, EachOccurrenceIsRunAndHasItsRow) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly");
  Begin();
  Live(absl::Hours(10) + absl::Minutes(30));
  std::vector<RunRow> rows = Rows(RunOutcome::kSucceeded);
  ASSERT_THAT(rows, SizeIs(10));
  EXPECT_EQ(rows[0].planned, clock_.true_time - absl::Hours(9) - absl::Minutes(30));
  EXPECT_EQ(rows[0].planned, *rows[0].started);
  EXPECT_EQ(*rows[0].ended - *rows[0].started, absl::Minutes(3));
  EXPECT_THAT(listener_.events, IsEmpty());
}

TEST_F(SchedulerTest, WhatWasMissedIsRunOnceAndTheRestCounted) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly");
  Begin();
  Live(absl::Minutes(150));
  Crash(true);
  Sleep(absl::Hours(5));
  Begin();
  Live(absl::Minutes(1));
  ASSERT_THAT(Rows(RunOutcome::kMissed), SizeIs(1));
  EXPECT_EQ(Rows(RunOutcome::kMissed)[0].occurrences, 4u);
  EXPECT_THAT(Rows(RunOutcome::kRunning), SizeIs(1));
  EXPECT_EQ(Rows(RunOutcome::kRunning)[0].planned - Rows(RunOutcome::kMissed)[0].planned_until, absl::Hours(1));
}

TEST_F(SchedulerTest, WhatWasMissedIsSkippedWhenThePolicySaysSo) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly", [](auto& s) { s.set_missed("skip"); });
  Begin();
  Live(absl::Minutes(150));
  Crash(true);
  Sleep(absl::Hours(5));
  Begin();
  Live(absl::Minutes(1));
  EXPECT_THAT(Rows(RunOutcome::kRunning), IsEmpty());
  ASSERT_THAT(Rows(RunOutcome::kMissed), SizeIs(1));
  EXPECT_EQ(Rows(RunOutcome::kMissed)[0].occurrences, 5u);
  Live(absl::Hours(1));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(3)) << "it goes on with the next";
}

TEST_F(SchedulerTest, NoMoreRunAtATimeThanAllowedAndAllGetTheirTurn) {
  for (int i = 0; i < 30; ++i) host_.machines[absl::StrCat("vm-", i)] = true;
  book_.Add("nightly", "vm-*", "01:00", [](auto& s) { s.set_missed("skip"); });
  Begin({.max_running = 3});
  Live(absl::Hours(3));
  EXPECT_EQ(host_.most_running, 3u);
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(30)) << "waiting for room is not being late";
}

TEST_F(SchedulerTest, OneScheduleMayAllowItselfLess) {
  for (int i = 0; i < 4; ++i) host_.machines[absl::StrCat("vm-", i)] = true;
  book_.Add("nightly", "vm-*", "01:00", [](auto& s) { s.set_concurrency(1); });
  Begin({.max_running = 3});
  Live(absl::Hours(2));
  EXPECT_EQ(host_.most_running, 1u);
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(4));
}

TEST_F(SchedulerTest, TwoSchedulesOfOneSessionTakeTurns) {
  host_.machines = {{"web", true}};
  book_.Add("a", "web", "hourly");
  book_.Add("b", "w*", "hourly");
  Begin();
  Live(absl::Hours(2) + absl::Minutes(30));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(4));
  EXPECT_EQ(host_.most_running, 1u);
}

TEST_F(SchedulerTest, ARunThatOutlivesUsIsWatchedOnNotRepeated) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Minutes(20); };
  book_.Add("hourly", "web", "hourly");
  Begin();
  Live(absl::Minutes(65));
  Crash(false);
  Begin();
  EXPECT_EQ(scheduler_->running(), 1u);
  Live(absl::Minutes(30));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(1));
  EXPECT_EQ(host_.started, 1);
}

TEST_F(SchedulerTest, ARunThatDiedWithUsIsInterruptedToldAndTriedAgain) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly");
  Begin();
  Live(absl::Minutes(61));
  Crash(true);
  Begin();
  EXPECT_THAT(Rows(RunOutcome::kInterrupted), SizeIs(1));
  Live(absl::Minutes(10));
  ASSERT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(1));
  EXPECT_EQ(Rows(RunOutcome::kSucceeded)[0].occurrences, 0u) << "the second try stands for none anew";
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1);
}

TEST_F(SchedulerTest, FailuresAreTriedAgainWithGrowingPausesAndToldOnce) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Seconds(1); };
  host_.outcome = [](const auto&) { return absl::UnavailableError("the guest does not answer"); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  std::vector<RunRow> failed = Rows(RunOutcome::kFailed);
  ASSERT_THAT(failed, SizeIs(4)) << "one and three retries";
  EXPECT_GT(*failed[3].started - *failed[2].started, *failed[2].started - *failed[1].started);
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed), 1);
  EXPECT_THAT(listener_.events[0].message, HasSubstr("does not answer"));
  host_.outcome = [](const auto&) { return absl::OkStatus(); };
  Live(absl::Hours(24));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1);
}

TEST_F(SchedulerTest, NothingBeginsInABlackoutAndTheNewestAfterIt) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly", [](auto& s) { s.add_blackouts("03:30-06:30"); });
  Begin();
  Live(absl::Hours(8));
  for (const RunRow& row : Rows(RunOutcome::kSucceeded)) {
    absl::CivilSecond at = absl::ToCivilSecond(*row.started, absl::UTCTimeZone());
    int minute = at.hour() * 60 + at.minute();
    EXPECT_TRUE(minute < 210 || minute >= 390) << at;
  }
  ASSERT_THAT(Rows(RunOutcome::kMissed), SizeIs(1)) << "04:00 and 05:00; 06:00 is run at 06:30";
  EXPECT_EQ(Rows(RunOutcome::kMissed)[0].occurrences, 2u);
}

TEST_F(SchedulerTest, AMachineThatIsOffIsSkippedOneThatIsGoneFails) {
  host_.machines = {{"off", false}};
  book_.Add("nightly", "off", "01:00", [](auto& s) { s.set_when_off("skip"); });
  book_.Add("other", "gone", "01:00");
  Begin();
  Live(absl::Hours(24 * 4));
  EXPECT_THAT(Rows(RunOutcome::kSkipped, "off"), SizeIs(4));
  EXPECT_THAT(Rows(RunOutcome::kFailed, "gone"), SizeIs(4));
  EXPECT_GE(listener_.Count(Event::Kind::kFailed, "gone"), 1);
  EXPECT_GE(listener_.Count(Event::Kind::kUnmatched, "gone"), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "off"), 0) << "it was said to be skipped";
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "gone"), 1);
}

TEST_F(SchedulerTest, ADeadMansAlertComesAlsoWhenNothingRuns) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(26));
  EXPECT_THAT(listener_.events, IsEmpty());
  Crash(true);
  Sleep(absl::Hours(24 * 3));
  // Another process only looks: nothing may be begun.
  Scheduler onlooker(book_, host_, listener_, clock_, {.max_running = 1});
  onlooker.Drain();
  ASSERT_TRUE(onlooker.Recover().ok());
  ASSERT_TRUE(onlooker.Step().ok());
  while (onlooker.Telling()) clock_.true_time += absl::Seconds(1);
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
  Begin();
  Live(absl::Minutes(10));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1) << "told once, also by two processes";
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 1);
}

TEST_F(SchedulerTest, AnotherTimeZoneCountsFromTheNextLook) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Minutes(30));
  absl::StatusOr<Schedule> there = MakeSchedule(book_.schedules[0].definition, absl::FixedTimeZone(10 * 3600));
  ASSERT_TRUE(there.ok()) << there.status();
  book_.schedules[0] = *there;
  Live(absl::Hours(20));
  auto rows = Rows(RunOutcome::kSucceeded);
  ASSERT_THAT(rows, SizeIs(1)) << "at one o'clock there, and not here";
  EXPECT_EQ(rows[0].planned, FakeClock().true_time + absl::Hours(15));
}

TEST_F(SchedulerTest, AClockThatIsSetBackHoldsNothingUp) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly");
  Begin();
  Live(absl::Hours(5));
  clock_.skew = -absl::Hours(24 * 30);
  Live(absl::Hours(5));
  EXPECT_GE(Rows(RunOutcome::kSucceeded).size(), 9u);
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
}

TEST_F(SchedulerTest, ASnapshotFromTheFutureDoesNotHideThatNoneComes) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly");
  clock_.skew = absl::Hours(24 * 365);
  Begin();
  Live(absl::Hours(2));
  clock_.skew = absl::ZeroDuration();
  host_.outcome = [](const auto&) { return absl::UnavailableError("gone"); };
  Live(absl::Hours(12));
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerTest, ARunThatTakesTooLongIsEnded) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Hours(100); };
  book_.Add("nightly", "web", "01:00", [](auto& s) {
    s.set_time_limit("2h");
    s.set_retries(0);
  });
  Begin();
  Live(absl::Hours(4));
  ASSERT_THAT(Rows(RunOutcome::kFailed), SizeIs(1));
  EXPECT_THAT(Rows(RunOutcome::kFailed)[0].message, HasSubstr("time limit"));
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed, "web"), 1);
}

TEST_F(SchedulerTest, WithoutATimeLimitADayIsOne) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Hours(100); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_retries(0); });
  Begin();
  Live(absl::Hours(1 + 24));
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed), 0);
  Live(absl::Minutes(15));
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed), 1);
}

TEST_F(SchedulerTest, ATimeLimitOfZeroIsNone) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Hours(100); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_time_limit("0"); });
  Begin();
  Live(absl::Hours(104));
  ASSERT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(1));
  EXPECT_THAT(Rows(RunOutcome::kFailed), IsEmpty());
  // The limit of whoever takes over is none either.
  Live(absl::Hours(20));
  Crash(false);
  Begin();
  Live(absl::Hours(90));
  EXPECT_THAT(Rows(RunOutcome::kFailed), IsEmpty());
}

TEST_F(SchedulerTest, ByHandBesideTheTimingAndNotTwiceAtATime) {
  host_.machines = {{"web", true}, {"db", true}};
  book_.Add("nightly", "*", "05:00");
  Begin();
  Live(absl::Minutes(10));
  absl::StatusOr<BegunRuns> begun = scheduler_->RunNow("nightly", {"web"});
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_THAT(begun->runs, SizeIs(1));
  EXPECT_TRUE(absl::IsUnavailable(scheduler_->RunNow("nightly", {}).status()));
  EXPECT_TRUE(absl::IsNotFound(scheduler_->RunNow("hourly", {}).status()));
  EXPECT_TRUE(absl::IsNotFound(scheduler_->RunNow("nightly", {"mail"}).status()));
  Crash(false);
  Begin();
  Live(absl::Hours(6));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded, "web"), SizeIs(2)) << "the one by hand does not stand for the one at five";
}

TEST_F(SchedulerTest, AlertsOfAScheduleThatIsRemovedGoWithIt) {
  book_.Add("nightly", "gone", "01:00");
  Begin();
  Live(absl::Hours(24 * 3));
  EXPECT_THAT(book_.remembered, SizeIs(5)) << "failed, stale, fits nothing; what is known of the pair; the turn";
  book_.schedules.clear();
  scheduler_->Reload();
  Live(absl::Hours(1));
  EXPECT_THAT(book_.remembered, SizeIs(1)) << "the turn";
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 0) << "nothing is better";
}

TEST_F(SchedulerTest, RetriesOutliveTheProcess) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Seconds(1); };
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  // As run-due does it: a process each minute, which ends when nothing runs.
  for (int minute = 0; minute < 180; ++minute) {
    Begin();
    Live(absl::Seconds(10));
    Crash(true);
    Sleep(absl::Seconds(50));
  }
  EXPECT_THAT(Rows(RunOutcome::kFailed), SizeIs(4)) << "one and three retries";
}

TEST_F(SchedulerTest, ByHandKeepsToTheLimitsAndTheRestFollows) {
  for (int i = 0; i < 9; ++i) host_.machines[absl::StrCat("vm-", i)] = true;
  book_.Add("nightly", "vm-*", "05:00");
  Begin({.max_running = 2});
  absl::StatusOr<BegunRuns> begun = scheduler_->RunNow("nightly", {});
  ASSERT_TRUE(begun.ok()) << begun.status();
  EXPECT_THAT(begun->runs, SizeIs(2));
  EXPECT_THAT(begun->waiting, SizeIs(7)) << "whoever waits for all of them knows whom to wait for";
  Live(absl::Hours(1));
  EXPECT_EQ(host_.most_running, 2u);
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(9));
}

TEST_F(SchedulerTest, SeveralByHandOfOneMachineFollowEachOther) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "05:00");
  book_.Add("weekly", "web", "06:00");
  Begin();
  ASSERT_TRUE(scheduler_->RunNow("nightly", {}).ok());
  absl::StatusOr<BegunRuns> second = scheduler_->RunNow("weekly", {});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_THAT(second->runs, IsEmpty());
  EXPECT_THAT(second->waiting, ElementsAre("web"));
  Live(absl::Hours(1));
  EXPECT_EQ(host_.most_running, 1u);
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(2));
}

TEST_F(SchedulerTest, WhatCouldNotBeWrittenDownStaysDue) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Minutes(50));
  Sleep(absl::Minutes(11));
  book_.writes = absl::ResourceExhaustedError("no space left on device");
  EXPECT_FALSE(scheduler_->Step().ok());
  EXPECT_THAT(book_.rows, IsEmpty());
  book_.writes = absl::OkStatus();
  Live(absl::Hours(1));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded, "web"), SizeIs(1));
  Crash(true);
  Begin();
  Live(absl::Hours(1));
  EXPECT_THAT(book_.rows, SizeIs(1)) << "its row stands for the occurrence";
}

TEST_F(SchedulerTest, WhoeverOnlyLooksChangesNothing) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Hours(1); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Minutes(70));
  ASSERT_THAT(Rows(RunOutcome::kRunning), SizeIs(1));
  Crash(true);
  Scheduler looking(book_, host_, listener_, clock_, {});
  ASSERT_TRUE(looking.Load().ok());
  EXPECT_THAT(Rows(RunOutcome::kRunning), SizeIs(1)) << "whoever is in charge closes it, and tries it again";
  Begin();
  Live(absl::Hours(3));
  EXPECT_THAT(Rows(RunOutcome::kInterrupted), SizeIs(1));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(1));
}

TEST_F(SchedulerTest, ByHandWithoutFurtherTurnsIsRememberedWhenItIsKept) {
  for (const char* name : {"a", "b"}) host_.machines[name] = true;
  book_.Add("nightly", "*", "05:00");
  Begin({.max_running = 1});
  ASSERT_TRUE(scheduler_->RunNow("nightly", {}).ok());
  ASSERT_TRUE(scheduler_->Keep().ok());
  Crash(false);
  Begin({.max_running = 1});
  Live(absl::Hours(1));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(2)) << "also the one that waited for room";
}

TEST_F(SchedulerTest, APausedScheduleDoesNothingAndIsNotStale) {
  host_.machines = {{"web", true}};
  book_.Add("hourly", "web", "hourly", [](auto& s) { s.set_paused(true); });
  Begin();
  Live(absl::Hours(24 * 10));
  EXPECT_THAT(book_.rows, IsEmpty());
  EXPECT_THAT(listener_.events, IsEmpty());
}

// Found by year 1057 of the story. Whoever repairs the schedule takes its machines for protected.
TEST_F(SchedulerTest, AMachineThatCameBackWhileItsScheduleCouldNotBeReadIsNotTakenForNew) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web*", "01:00");
  Begin();
  Live(absl::Hours(24 * 3));
  host_.machines.clear();
  Live(absl::Hours(3));
  ASSERT_EQ(listener_.Count(Event::Kind::kGone, "web"), 1) << "and it is forgotten";
  book_.unusable = {{"nightly", "calendar: what is a Funday?"}};
  Crash(true);
  Begin();  // It has never read the schedule.
  host_.machines = {{"web", true}};
  Live(absl::Hours(24 * 10));
  ASSERT_EQ(listener_.Count(Event::Kind::kStale, "web"), 0) << "nobody knows what the schedule is about";
  book_.unusable.clear();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
}

}  // namespace
}  // namespace still::schedule
