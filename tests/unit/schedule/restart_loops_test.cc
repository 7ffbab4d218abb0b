#include "schedule/restart_loops.h"

#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/schedule/scheduler_fixture.h"

namespace still::schedule {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using Verdict = RestartLoops::Verdict;

constexpr uint32_t kTooMany = RestartLoops::kMostWithin + 1;

class RestartLoopsTest : public ::testing::Test {
 protected:
  Verdict Look(uint32_t resets, absl::Duration later = absl::Minutes(1)) {
    now_ += later;
    return loops_.Look("web", resets, now_);
  }
  // The next process, which has the book and nothing else.
  void BeginAnew() {
    for (const auto& [key, value] : loops_.unsaved()) book_[key] = value;
    loops_ = RestartLoops();
    loops_.Load(book_);
  }

  absl::Time now_ = absl::FromUnixSeconds(1'800'000'000);
  RestartLoops loops_;
  std::map<std::string, std::string> book_;
};

TEST_F(RestartLoopsTest, MoreResetsWithinAnHourThanAnybodyMakesAreALoop) {
  EXPECT_EQ(Look(40), Verdict::kUnknown) << "over how long is not known";
  EXPECT_EQ(Look(40 + kTooMany - 1), Verdict::kUnknown);
  EXPECT_EQ(Look(40 + kTooMany), Verdict::kLoops);
}

TEST_F(RestartLoopsTest, AnHourWithFewIsCalmAndALoopGoesOnUntilThen) {
  Look(0);
  EXPECT_EQ(Look(kTooMany, RestartLoops::kWindow), Verdict::kLoops);
  EXPECT_EQ(Look(kTooMany), Verdict::kUnknown);
  EXPECT_EQ(Look(kTooMany + 1, RestartLoops::kWindow), Verdict::kCalm);
}

TEST_F(RestartLoopsTest, SeldomIsNotOftenHoweverLongNobodyLooked) {
  Look(0);
  EXPECT_EQ(Look(kTooMany, 10 * RestartLoops::kWindow), Verdict::kCalm);
  EXPECT_EQ(Look(kTooMany + 10 * kTooMany, 10 * RestartLoops::kWindow), Verdict::kLoops);
}

TEST_F(RestartLoopsTest, WhoeverLivesForAMomentSeesItByWhatTheOneBeforeWroteDown) {
  Look(3);
  BeginAnew();
  EXPECT_EQ(Look(3 + kTooMany, RestartLoops::kWindow), Verdict::kLoops);
  BeginAnew();
  EXPECT_EQ(Look(3 + 2 * kTooMany, RestartLoops::kWindow), Verdict::kLoops);
}

TEST_F(RestartLoopsTest, OneThatWasStartedAgainCountsAnew) {
  Look(10);
  EXPECT_EQ(Look(kTooMany), Verdict::kUnknown);
  EXPECT_EQ(Look(2 * kTooMany), Verdict::kLoops);
}

TEST_F(RestartLoopsTest, AClockThatWasSetBackHoldsNothingUp) {
  Look(0);
  EXPECT_EQ(Look(1, absl::Hours(-1000)), Verdict::kUnknown);
  EXPECT_EQ(Look(1, RestartLoops::kWindow), Verdict::kCalm);
}

TEST_F(RestartLoopsTest, TheBookIsWrittenOnlyForWhatIsReset) {
  Look(0);
  Look(0, RestartLoops::kWindow);
  EXPECT_THAT(loops_.unsaved(), IsEmpty());
  Look(1, RestartLoops::kWindow);
  EXPECT_EQ(loops_.unsaved().size(), 1u);
  loops_.Saved();
  loops_.KeepOnly([](const std::string&) { return false; });
  EXPECT_THAT(loops_.unsaved(), ElementsAre(Pair("resets/web", "")));
}

using SchedulerRestartsTest = SchedulerTest;

TEST_F(SchedulerRestartsTest, AMachineThatRestartsAgainAndAgainIsToldUntilItDoesNot) {
  host_.machines = {{"web", true}, {"lab", true}};
  host_.resets = {{"web", 2}, {"lab", 2}};
  book_.Add("nightly", "web", "01:00");
  Begin();
  Live(absl::Minutes(5));
  for (int minute = 0; minute < 10; ++minute) {
    ++host_.resets["web"];
    ++host_.resets["lab"];
    Live(absl::Minutes(1));
  }
  ASSERT_EQ(listener_.Count(Event::Kind::kRestarting, "web"), 1);
  EXPECT_THAT(listener_.events[0].message, HasSubstr("restarts again and again"));
  EXPECT_EQ(listener_.Count(Event::Kind::kRestarting, "lab"), 0) << "nothing protects it";
  Live(absl::Hours(4));
  EXPECT_EQ(listener_.Count(Event::Kind::kRecovered, "web"), 1);
}

// As run-due and check do: each turn is another process.
TEST_F(SchedulerRestartsTest, WhoeverTakesOneTurnAnHourSeesARestartingMachineToo) {
  host_.machines = {{"web", true}};
  host_.resets = {{"web", 2}};
  book_.Add("nightly", "web", "01:00");
  for (int hour = 0; hour < 3; ++hour) {
    Begin();
    Live(absl::Minutes(1));
    clock_.Sleep(absl::Hours(1));
    host_.resets["web"] += 20;
  }
  EXPECT_EQ(listener_.Count(Event::Kind::kRestarting, "web"), 1);
}

}  // namespace
}  // namespace still::schedule
