// A supervisor on a host where many sessions hang: turns, checks, metrics and the page go on.
#include <stdlib.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/supervisor.h"
#include "session/control/session_registry.h"
#include "tools/stilld/figures.h"
#include "tools/stilld/metrics.h"
#include "tools/stilld/status_page.h"

namespace still::daemon {
namespace {

using ::testing::HasSubstr;

constexpr int kHanging = 40;
// One that waited a second for each of them would take longer.
constexpr absl::Duration kTooLong = absl::Seconds(kHanging - 20);

class HungSessionsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-hung-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    const store::RepositoryOptions repository = {.path = JoinPath(root_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    const session::SessionRegistry sessions(root_);
    for (int i = 0; i < kHanging; ++i) {
      absl::StatusOr<session::SessionPlace> place = sessions.Create(absl::StrCat("hung-", i));
      ASSERT_TRUE(place.ok()) << place.status();
      ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
      const std::string path = JoinPath(place->directory, "control.sock");
      absl::StatusOr<OwnedFd> socket = ListenUnix(path, /*backlog=*/0);
      ASSERT_TRUE(socket.ok()) << socket.status();
      open_.push_back(*std::move(socket));
      // With a full queue: the kernel accepts for it no more.
      open_.push_back(*ConnectUnix(path));
      places_.push_back(*std::move(place));
    }
    auto supervisor = schedule::Supervisor::Open(
        {.state = root_, .repository = repository, .worker_program = "/bin/false", .trim_every = absl::ZeroDuration()});
    ASSERT_TRUE(supervisor.ok()) << supervisor.status();
    supervisor_ = *std::move(supervisor);
    ASSERT_TRUE(supervisor_->TakeCharge().ok());
  }
  void TearDown() override {
    supervisor_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }

  std::string root_;
  std::vector<OwnedFd> open_;
  std::vector<session::SessionPlace> places_;
  std::unique_ptr<schedule::Supervisor> supervisor_;
};

TEST_F(HungSessionsTest, TurnsChecksMetricsAndThePageGoOn) {
  const absl::Duration begin = Clock::Real().Monotonic();
  supervisor_->SchedulesChanged();  // Else it may remember the sessions.
  absl::StatusOr<absl::Duration> wait = supervisor_->Step();
  ASSERT_TRUE(wait.ok()) << wait.status();
  auto report = supervisor_->Report();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->machines_size(), kHanging) << "none drops out";
  CountedStats stats;
  absl::StatusOr<Figures> figures = GatherFigures(*supervisor_, stats);
  ASSERT_TRUE(figures.ok()) << figures.status();
  EXPECT_THAT(Metrics().Render(*figures), HasSubstr("stillpoint_session_running{session=\"hung-7\"} 1"));
  EXPECT_THAT(RenderStatusPage(*figures), HasSubstr("hung-7"));
  EXPECT_LT(Clock::Real().Monotonic() - begin, kTooLong);
}

TEST_F(HungSessionsTest, OneThatRestartsAgainAndAgainIsInTheMetricsAndOnThePage) {
  ASSERT_TRUE(supervisor_->book()
                  .Remember("alert/restarting//hung-7",
                            R"({"since": 1800000000, "message": "hung-7 restarts again and again", "channels": {}})")
                  .ok());
  CountedStats stats;
  absl::StatusOr<Figures> figures = GatherFigures(*supervisor_, stats);
  ASSERT_TRUE(figures.ok()) << figures.status();
  EXPECT_THAT(Metrics().Render(*figures),
              HasSubstr("stillpoint_alert_active{kind=\"restarting\",schedule=\"\",session=\"hung-7\"} 1"));
  figures->report.set_turned_unix_ns(absl::ToUnixNanos(figures->now));  // Else the page says only that there was none.
  EXPECT_THAT(RenderStatusPage(*figures), HasSubstr("hung-7 restarts again and again"));
}

// Not only when it starts: it runs for years.
TEST_F(HungSessionsTest, HistoryIsTrimmedWhileItRuns) {
  const absl::Time long_ago = Clock::Real().Now() - absl::Hours(24 * 401);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(supervisor_->book()
                    .AddRun({.schedule = "nightly",
                             .kind = "capture",
                             .session = "web",
                             .planned = long_ago,
                             .planned_until = long_ago,
                             .occurrences = 1,
                             .ended = long_ago,
                             .outcome = store::RunOutcome::kSucceeded})
                    .ok());
  }
  ASSERT_TRUE(supervisor_->Step().ok());
  auto left = supervisor_->book().ListRuns({.limit = 10});
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_EQ(left->size(), 1u) << "the newest of each schedule and session stays";
}

}  // namespace
}  // namespace still::daemon
