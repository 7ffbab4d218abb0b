// How soon somebody is told, with the pace that stilld has: the clock is the test's, and the limits are the scheduler's own.
// docs/operations.md has them in its table.
#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/scheduler.h"
#include "tests/unit/schedule/scheduler_fixture.h"

namespace still::schedule {
namespace {

using Kind = Event::Kind;
using ::testing::HasSubstr;

class HowSoonTest : public SchedulerTest {
 protected:
  // Takes turns as stilld does until so many messages of this kind have arrived; how long that took, and how many turns.
  struct Took {
    absl::Duration time;
    int turns = 0;
  };
  Took UntilTold(absl::Duration wait, Kind kind, int count = 1) {
    const absl::Time begin = clock_.true_time;
    Took took;
    while (listener_.Count(kind) < count && clock_.true_time < begin + absl::Hours(100)) {
      clock_.true_time += wait;
      host_.Pass();
      wait = Turn();
      ++took.turns;
    }
    took.time = clock_.true_time - begin;
    return took;
  }
  // How long it waits for the next.
  absl::Duration Turn() {
    absl::StatusOr<absl::Duration> wait = scheduler_->Step();
    EXPECT_TRUE(wait.ok()) << wait.status();
    return wait.value_or(absl::Seconds(5));
  }
  const SchedulerOptions options_ = {};
};

TEST_F(HowSoonTest, WhatDropsOutIsToldByTheNextLook) {
  host_.machines = {{"web", true}, {"db", true}, {"mail", true}, {"shop", true}};
  book_.Add("nightly", "*", "01:00");
  book_.Add("weekly", "w*", "02:00");
  BeginAsStilld();
  Live(absl::Minutes(1));
  // Somebody has asked it something: that was a turn, and none that looked.
  Sleep(options_.reload_every - absl::Seconds(1));
  const absl::Duration wait = Turn();
  host_.ended = {{"web", "crashed: signal 9"}};
  host_.machines.erase("db");
  host_.machines.erase("mail");
  host_.unreadable = {{"mail", "session.json: damaged"}};
  host_.held = {{"shop", "disk vda cannot be written"}};
  book_.unusable = {{"weekly", "calendar: what is a Funday?"}};
  for (Kind kind : {Kind::kEnded, Kind::kGone, Kind::kUnreadable, Kind::kHeld, Kind::kUnusable}) {
    EXPECT_LE(UntilTold(wait, kind).time, options_.reload_every) << EventName(kind);
  }
}

TEST_F(HowSoonTest, StaleIsToldInTheFirstTurnThatIsLateEnough) {
  host_.machines = {{"web", true}};
  host_.outcome = [](const auto&) { return absl::UnavailableError("no"); };
  book_.Add("nightly", "web", "01:00", [](auto& s) { s.set_max_age("30h"); });
  BeginAsStilld();
  Turn();
  Sleep(absl::Hours(30) - options_.reload_every);
  UntilTold(Turn(), Kind::kStale);
  const absl::Duration late = clock_.true_time - FakeClock().true_time - absl::Hours(30);
  EXPECT_GT(late, absl::ZeroDuration());
  EXPECT_LE(late, options_.reload_every);
}

// A disk that is full for a moment, a catalog that somebody keeps locked: the next turns do what is due.
TEST_F(HowSoonTest, TurnsThatFailAreToldWhenTheyHaveFailedForSoLong) {
  host_.machines = {{"web", true}};
  book_.Add("nightly", "web", "01:00");
  BeginAsStilld();
  Live(absl::Minutes(1));
  book_.reads = absl::UnavailableError("locked");
  Sleep(options_.reload_every);
  EXPECT_FALSE(scheduler_->Step().ok());
  Sleep(options_.failing_after - absl::Seconds(1));
  EXPECT_FALSE(scheduler_->Step().ok());
  EXPECT_EQ(listener_.Count(Kind::kScheduler), 0);
  Sleep(absl::Seconds(1));
  EXPECT_FALSE(scheduler_->Step().ok());
  EXPECT_EQ(listener_.Count(Kind::kScheduler), 1);
}

TEST_F(HowSoonTest, AFailedRunOfAnyKindIsToldInTheTurnThatSeesItsEnd) {
  host_.machines = {{"web", true}};
  const std::map<std::string, std::string> why = {{"capture", "write pack: No space left on device"},
                                                  {"verify", "1 problems, the first: pack 7 is damaged"},
                                                  {"drill", "the drill failed: exit code 3"},
                                                  {"prune", "no room"}};
  host_.outcome = [&](const store::RunRow& run) { return absl::DataLossError(why.at(run.kind)); };
  int told = 0;
  for (const auto& [kind, message] : why) {
    book_.Add(kind, "web", "yearly", [&, name = kind](auto& s) {
      s.set_retries(0);
      if (name == "verify") s.set_kind(schedulepb::Schedule::KIND_VERIFY);
      if (name == "drill") s.set_kind(schedulepb::Schedule::KIND_DRILL);
      if (name == "prune") s.set_kind(schedulepb::Schedule::KIND_PRUNE);
      if (name == "verify" || name == "prune") s.clear_sessions();
    });
    BeginAsStilld();
    ASSERT_TRUE(scheduler_->RunNow(kind, {}).ok()) << kind;
    Turn();
    clock_.true_time = host_.NextEnd();
    host_.Pass();
    Turn();
    ASSERT_EQ(listener_.Count(Kind::kFailed), ++told) << kind;
    EXPECT_THAT(listener_.events.back().message, HasSubstr(message));
  }
}

}  // namespace
}  // namespace still::schedule
