#include "session/control/launch_report.h"

#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class LaunchReportTest : public ::testing::Test {
 protected:
  LaunchReportTest() : sockets_(MakeReportSocket().value()), reporter_(std::move(sockets_.second)) {}

  absl::StatusOr<sessionpb::LaunchReport> Await(absl::Duration timeout = absl::Minutes(1)) {
    return AwaitReport(sockets_.first.get(), timeout, [this](const std::string& step) { steps_.push_back(step); });
  }

  SocketPair sockets_;
  std::vector<std::string> steps_;
  absl::Notification gone_;
  LaunchReporter reporter_;
};

TEST_F(LaunchReportTest, StepsComeBeforeTheReportAndASlowOneIsToldAgain) {
  std::thread session([this] {
    reporter_.Step("boil");
    absl::SleepFor(absl::Milliseconds(1500));
    sessionpb::LaunchReport report;
    report.add_warnings("hot");
    EXPECT_TRUE(reporter_.Finish(report));
  });
  absl::StatusOr<sessionpb::LaunchReport> report = Await();
  session.join();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings(), SizeIs(1));
  ASSERT_THAT(steps_, SizeIs(2));
  EXPECT_EQ(steps_[0], "boil");
  EXPECT_EQ(steps_[1], "boil");
}

TEST_F(LaunchReportTest, AnErrorArrivesAsItWas) {
  EXPECT_TRUE(reporter_.Finish(absl::AbortedError("no machine")));
  EXPECT_EQ(Await().status(), absl::AbortedError("no machine"));
  EXPECT_TRUE(reporter_.Finish(absl::AbortedError("again"))) << "nobody waits: nobody can be missed";
}

TEST_F(LaunchReportTest, OneThatDiesHasNoLastWord) {
  SocketPair sockets = MakeReportSocket().value();
  sockets.second.Reset();
  EXPECT_THAT(AwaitReport(sockets.first.get(), absl::Minutes(1), [](const std::string&) {}).status().message(),
              HasSubstr("without a word"));
}

TEST_F(LaunchReportTest, OneThatHangsMeetsTheLimit) {
  EXPECT_TRUE(absl::IsDeadlineExceeded(Await(absl::Milliseconds(20)).status()));
}

TEST_F(LaunchReportTest, ALauncherThatDiesIsNoticedWhileWeMakeReady) {
  reporter_.Watch([this] { gone_.Notify(); });
  EXPECT_FALSE(gone_.WaitForNotificationWithTimeout(absl::Milliseconds(300))) << "it waits";
  sockets_.first.Reset();
  EXPECT_TRUE(gone_.WaitForNotificationWithTimeout(absl::Minutes(1)));
  EXPECT_FALSE(reporter_.Finish(sessionpb::LaunchReport())) << "nobody was told that it is ready";
}

TEST_F(LaunchReportTest, ALauncherThatHasItsAnswerMayGo) {
  reporter_.Watch([this] { gone_.Notify(); });
  std::thread launcher([this] {
    EXPECT_TRUE(Await().ok());
    sockets_.first.Reset();
  });
  EXPECT_TRUE(reporter_.Finish(sessionpb::LaunchReport()));
  launcher.join();
  EXPECT_FALSE(gone_.HasBeenNotified());
}

}  // namespace
}  // namespace still::session
