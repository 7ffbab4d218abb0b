#include "schedule/restart_loops.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

using ::testing::ElementsAre;
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

}  // namespace
}  // namespace still::schedule
