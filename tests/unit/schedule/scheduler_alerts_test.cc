// Scheduler: who is told what, and what drops out; one scenario each.
#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/scheduler.h"
#include "tests/unit/schedule/scheduler_fixture.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using SchedulerAlertsTest = SchedulerTest;

TEST_F(SchedulerAlertsTest, AMachineThatIsNeverOnAtItsHourIsTold) {
  host_.machines = {{"off", false}};
  book_.Add("nightly", "off", "01:00");
  Begin();
  Live(absl::Hours(24 * 4));
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "off"), 1);
  EXPECT_THAT(listener_.events[0].message, HasSubstr("does not run"));
}

TEST_F(SchedulerAlertsTest, AMachineThatIsOffIsBackedUpFromItsDisksWhereThatIsAskedFor) {
  host_.machines = {{"off", false}};
  book_.Add("nightly", "off", "01:00", [](auto& s) { s.set_when_off("disk"); });
  Begin();
  Live(absl::Hours(24 * 4));
  EXPECT_THAT(Rows(RunOutcome::kSucceeded, "off"), SizeIs(4));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  Live(absl::Hours(24 * 4));
  EXPECT_GE(listener_.Count(Event::Kind::kFailed, "off"), 1);
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "off"), 1) << "it may not grow old";
}

TEST_F(SchedulerAlertsTest, WhatTheChannelDoesNotTakeIsTriedAgainUntilItDoes) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_retries(0); });
  listener_.broken = {"pager"};
  Begin();
  Live(absl::Hours(12));
  EXPECT_THAT(listener_.events, IsEmpty());
  EXPECT_GT(listener_.tries, 5);
  EXPECT_LT(listener_.tries, 30) << "with growing pauses";
  Crash(true);
  listener_.broken.clear();
  Begin();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kFailed, "web"), 1) << "the queue outlived the process";
}

TEST_F(SchedulerAlertsTest, AClockThatComesBackMakesNobodyFresh) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  clock_.skew = absl::Hours(24 * 300);
  Live(absl::Hours(26));
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  Live(absl::Hours(24 * 4));
  ASSERT_GE(listener_.Count(Event::Kind::kStale, "web"), 1);
  clock_.skew = absl::ZeroDuration();
  Live(absl::Hours(3));
  EXPECT_EQ(listener_.stale.size(), 1u) << "its newest snapshot is as old as it was";
}

// The clock was ahead for a day, and right again after that; now what it said then has come.
class SchedulerFutureTest : public SchedulerTest {
 protected:
  void LiveUntilItComes(bool with_a_restart) {
    host_.machines = {{"web", true}};
    book_.Add("nightly", "web", "01:00");
    clock_.skew = absl::Hours(24 * 300);
    Begin();
    Live(absl::Hours(26));
    host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
    if (with_a_restart) Crash(true);
    clock_.skew = absl::ZeroDuration();
    if (with_a_restart) Begin();
    Live(absl::Hours(24 * 4));
    ASSERT_EQ(listener_.stale.size(), 1u);
    Crash(true);
    Sleep(absl::Hours(24 * 296));
    Begin();
    Live(absl::Hours(2));
  }
  bool CalledFresh() const {
    return std::any_of(listener_.events.begin(), listener_.events.end(), [](const Event& event) {
      return event.kind == Event::Kind::kRecovered && event.about == "stale";
    });
  }
};

TEST_F(SchedulerFutureTest, ASnapshotIsAsOldAsItWasForWhoeverSawTheClockGoBack) {
  LiveUntilItComes(/*with_a_restart=*/false);
  EXPECT_FALSE(CalledFresh());
}

TEST_F(SchedulerFutureTest, ASnapshotIsAsOldAsItWasForWhoeverFoundItInTheFuture) {
  LiveUntilItComes(/*with_a_restart=*/true);
  EXPECT_FALSE(CalledFresh());
}

TEST_F(SchedulerAlertsTest, ARunThatTheHostSleptThroughIsAsOldAsItsBeginning) {
  host_.machines = {{"web", true}};
  host_.duration = [](const auto&) { return absl::Minutes(10); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_retries(0); });
  clock_.skew = absl::Hours(24 * 300);
  Begin();
  Live(absl::Minutes(62));
  ASSERT_EQ(scheduler_->running(), 1u);
  Sleep(absl::Hours(24 * 3));
  host_.Pass();
  clock_.skew = absl::ZeroDuration();
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerAlertsTest, AClockThatWasALittleAheadAlarmsNobody) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  clock_.skew = absl::Hours(1);
  Begin();
  Live(absl::Hours(24 * 4 + 1));
  Crash(true);
  clock_.skew = -absl::Hours(1);
  Begin();
  Live(absl::Minutes(30));  // Its snapshot is of half an hour from now.
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
}

TEST_F(SchedulerAlertsTest, EachChannelIsToldOnItsOwn) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_retries(0); });
  listener_.channels = {"pager", "mail"};
  listener_.broken = {"mail"};
  Begin();
  Live(absl::Hours(10));
  EXPECT_THAT(listener_.events, SizeIs(1));
  listener_.broken.clear();
  Live(absl::Hours(1));
  EXPECT_THAT(listener_.events, SizeIs(2));
}

TEST_F(SchedulerAlertsTest, WhatIsOverBeforeAnybodyWasToldIsNotTold) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_retries(0); });
  listener_.broken = {"pager"};
  Begin();
  Live(absl::Hours(10));
  host_.outcome = [](const auto&) { return absl::OkStatus(); };
  Live(absl::Hours(24));
  listener_.broken.clear();
  Live(absl::Hours(5));
  EXPECT_THAT(listener_.events, IsEmpty());
}

TEST_F(SchedulerAlertsTest, ASchedulerThatCannotWorkIsItselfAnAlert) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  const absl::Time worked = scheduler_->last_full_turn();
  book_.writes = book_.reads = absl::ResourceExhaustedError("no space left on device");
  for (int turn = 0; turn < 100; ++turn) {
    clock_.true_time += absl::Hours(1);
    EXPECT_FALSE(scheduler_->Step().ok());
  }
  EXPECT_EQ(scheduler_->last_full_turn(), worked) << "the watchdog is fed by full turns only";
  EXPECT_GE(listener_.Count(Event::Kind::kScheduler), 1);
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 1) << "ages are looked at all the same";
  book_.writes = book_.reads = absl::OkStatus();
  Live(absl::Hours(26));
  EXPECT_EQ(listener_.stale.size(), 0u);
}

TEST_F(SchedulerAlertsTest, WithoutARepositoryAgesAreLookedAtAndItIsTold) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  for (int turn = 0; turn < 24 * 4; ++turn) {
    Sleep(absl::Hours(1));
    EXPECT_FALSE(scheduler_->Step(absl::NotFoundError("the repository is gone")).ok());
  }
  EXPECT_GE(listener_.Count(Event::Kind::kScheduler), 1);
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerAlertsTest, NoCheckEndsTheTroubleThatItWasToldOfAndWhoeverHadItDoes) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  listener_.all_well = 0;
  for (int hour = 0; hour < 3; ++hour) {  // As `still schedule check` does while stilld hangs.
    Sleep(absl::Hours(1));
    Scheduler check(book_, host_, listener_, clock_, {});
    check.OnlyLook();
    ASSERT_TRUE(check.Recover().ok());
    check.RaiseTrouble("stilld does not answer");
    ASSERT_TRUE(check.Step().ok());
    EXPECT_FALSE(check.Telling());
  }
  EXPECT_EQ(listener_.Count(Event::Kind::kScheduler), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 0);
  EXPECT_EQ(listener_.all_well, 0);
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1) << "it works again";
  EXPECT_TRUE(scheduler_->alerts().all().empty());
}

TEST_F(SchedulerAlertsTest, OneScheduleThatCannotBeReadIsToldAndGoesOnAsItWas) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  book_.unusable = {{"nightly", "calendar: what is a Funday?"}};
  Live(absl::Hours(48));
  EXPECT_GE(listener_.Count(Event::Kind::kUnusable), 1);
  EXPECT_THAT(Rows(RunOutcome::kSucceeded), SizeIs(3)) << "as it was last read";
  book_.unusable.clear();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 1);
}

TEST_F(SchedulerAlertsTest, APatternThatFitsNothingIsTold) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "wbe-*", "01:00");
  Begin();
  Live(absl::Minutes(30));
  EXPECT_THAT(listener_.events, IsEmpty()) << "machines may still be on their way";
  Live(absl::Hours(3));
  EXPECT_EQ(listener_.Count(Event::Kind::kUnmatched, "wbe-*"), 1);
}

TEST_F(SchedulerAlertsTest, APatternThatFitsNothingIsToldAlsoByProcessesThatAreShort) {
  book_.Add("nightly", "wbe-*", "01:00");
  for (int minute = 0; minute < 90; ++minute) {
    Begin();
    ASSERT_TRUE(scheduler_->Step().ok());
    EXPECT_FALSE(scheduler_->Telling());
    Crash(true);
    Sleep(absl::Minutes(1));
    if (minute == 30) {
      EXPECT_THAT(listener_.events, IsEmpty());
    }
  }
  EXPECT_EQ(listener_.Count(Event::Kind::kUnmatched, "wbe-*"), 1);
}

TEST_F(SchedulerAlertsTest, ASnapshotThatIsForgottenCountsNoMore) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(24 * 10 + 2));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale), 0);
  host_.kept.clear();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerAlertsTest, APromiseThatIsRaisedIsNotKeptByOlderSnapshots) {
  host_.machines = {{"web", true}};
  host_.level = [](const auto&) { return manifestpb::Consistency::CRASH; };
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(24 * 10 + 2));
  auto definition = book_.schedules[0].definition;
  definition.set_require("filesystem");
  definition.set_counted_from_unix_ns(absl::ToUnixNanos(clock_.Now()));
  book_.schedules[0] = *MakeSchedule(definition, absl::UTCTimeZone());
  scheduler_->Reload();
  Live(absl::Minutes(10));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerAlertsTest, AnEditThatLeavesAMachineOutTellsNothingUntrue) {
  host_.machines = {{"web", true}, {"db", true}};
  host_.unreadable = {{"mail", "session.json: damaged"}};
  book_.Add("nightly", "*", "01:00");
  Begin();
  Live(absl::Hours(3));
  ASSERT_EQ(listener_.Count(Event::Kind::kUnreadable, "mail"), 1);
  auto definition = book_.schedules[0].definition;
  definition.set_sessions(0, "web");
  book_.schedules[0] = *MakeSchedule(definition, absl::UTCTimeZone());
  scheduler_->Reload();
  Live(absl::Hours(3));
  EXPECT_EQ(listener_.Count(Event::Kind::kGone), 0) << "db and mail are there";
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "mail"), 0) << "it still cannot be read";
}

TEST_F(SchedulerAlertsTest, WhatIsPausedIsNotRepeated) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(72));
  ASSERT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
  auto definition = book_.schedules[0].definition;
  definition.set_paused(true);
  book_.schedules[0] = *MakeSchedule(definition, absl::UTCTimeZone());
  scheduler_->Reload();
  ASSERT_TRUE(scheduler_->Step().ok());
  const size_t before = listener_.events.size();
  Live(absl::Hours(24 * 5));
  EXPECT_THAT(listener_.events, SizeIs(before));
}

TEST_F(SchedulerAlertsTest, AMachineThatMayBeOffIsNotRepeated) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_when_off("skip"); });
  Begin();
  Live(absl::Hours(72));
  ASSERT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
  host_.machines["web"] = false;
  scheduler_->Reload();
  Live(absl::Hours(24 * 5));
  EXPECT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 0) << "nothing is better";
}

TEST_F(SchedulerAlertsTest, ASessionThatCannotBeReadIsToldAndItsSnapshotsAgeOn) {
  host_.unreadable = {{"web", "session.json: not JSON"}};
  host_.outcome = [](const auto&) { return absl::DataLossError("session.json"); };
  book_.Add("nightly", "w*", "01:00");
  Begin();
  Live(absl::Hours(72));
  EXPECT_GE(listener_.Count(Event::Kind::kUnreadable, "web"), 1);
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 1);
}

TEST_F(SchedulerAlertsTest, AMachineOfAPatternThatIsGoneIsToldOnce) {
  host_.machines = {{"web", true}, {"web-2", true}};
  book_.Add("nightly", "web*", "01:00");
  Begin();
  Live(absl::Hours(3));
  host_.machines.erase("web-2");
  Live(absl::Hours(24 * 5));
  EXPECT_EQ(listener_.Count(Event::Kind::kGone, "web-2"), 1);
}

TEST_F(SchedulerAlertsTest, AMachineThatEndedByItselfIsToldOnce) {
  host_.machines = {{"web", false}};
  host_.ended = {{"web", "exited with code 1"}};
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_when_off("skip"); });
  Begin();
  Live(absl::Hours(24 * 5));
  EXPECT_EQ(listener_.Count(Event::Kind::kEnded, "web"), 1);
  host_.machines["web"] = true;
  host_.ended.clear();
  Live(absl::Hours(1));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 1);
}

TEST_F(SchedulerAlertsTest, AMachineThatCrashedIsToldBeforeItsNextRunFails) {
  host_.machines = {{"web", true}};  // It ought to run.
  host_.ended = {{"web", "crashed: signal 9"}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Minutes(5));
  ASSERT_EQ(listener_.Count(Event::Kind::kEnded, "web"), 1);
  EXPECT_THAT(listener_.events[0].message, HasSubstr("crashed: signal 9"));
  host_.machines.clear();
  host_.unreadable = {{"web", "session.json: not JSON"}};
  Live(absl::Hours(2));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 0)
      << "nothing is known of it: it does not run again by that";
}

TEST_F(SchedulerAlertsTest, AMachineThatIsHeldIsToldUntilItGoesOn) {
  host_.machines = {{"web", true}};
  host_.held = {{"web", "the guest is held: disk vda cannot be written: No space left on device"}};
  Begin();
  Live(absl::Hours(30));
  EXPECT_EQ(listener_.Count(Event::Kind::kHeld, "web"), 2) << "each day, and also of one without a schedule";
  EXPECT_THAT(listener_.events[0].message, HasSubstr("No space left"));
  host_.held.clear();
  Live(absl::Hours(1));
  ASSERT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 1);
}

TEST_F(SchedulerAlertsTest, WhatIsBelowThePromisedLevelDoesNotCount) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  host_.level = [](const auto&) { return manifestpb::Consistency::CRASH; };
  Live(absl::Hours(24 * 2));
  EXPECT_EQ(listener_.Count(Event::Kind::kLevel, "web"), 0) << "two runs may be bad luck";
  Crash(true);
  Begin();
  Live(absl::Hours(24));
  EXPECT_EQ(listener_.Count(Event::Kind::kLevel, "web"), 1) << "by the third";
  Live(absl::Hours(24));
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 1) << "the first run reached more, and that is the promise";
  host_.level = [](const auto&) { return manifestpb::Consistency::APPLICATION; };
  Live(absl::Hours(24));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 2);
  ASSERT_THAT(scheduler_->Coverage(), SizeIs(1));
  EXPECT_EQ(scheduler_->Coverage()[0].promised, manifestpb::Consistency::FILESYSTEM);
  EXPECT_EQ(scheduler_->Coverage()[0].newest_level, manifestpb::Consistency::APPLICATION);
}

TEST_F(SchedulerAlertsTest, AnEditMendsNothing) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(72));
  ASSERT_EQ(listener_.Count(Event::Kind::kStale, "web"), 1);
  for (int day = 0; day < 5; ++day) {
    auto definition = book_.schedules[0].definition;
    definition.set_counted_from_unix_ns(absl::ToUnixNanos(clock_.Now()));
    if (day == 4) definition.set_max_age("90d");
    book_.schedules[0] = *MakeSchedule(definition, absl::UTCTimeZone());
    scheduler_->Reload();
    Live(absl::Hours(24));
  }
  EXPECT_GE(listener_.Count(Event::Kind::kStale, "web"), 4) << "whoever edits it daily is told all the same";
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 0) << "nothing is better, only allowed";
  host_.outcome = [](const auto&) { return absl::OkStatus(); };
  Live(absl::Hours(24));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered), 2) << "failed and stale";
}

TEST_F(SchedulerAlertsTest, WhoeverIsAlarmedByAbsenceIsCalledOnlyWhileAllIsWell) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Hours(3));
  EXPECT_GT(listener_.all_well, 0);
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  Live(absl::Hours(24));
  const int before = listener_.all_well;
  Live(absl::Hours(10));
  EXPECT_EQ(listener_.all_well, before);
}

}  // namespace
}  // namespace still::schedule
