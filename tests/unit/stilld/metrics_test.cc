// Metrics: what is counted, and when.
#include "tools/stilld/metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::daemon {
namespace {

using store::RunOutcome;
using store::RunRow;
using ::testing::HasSubstr;
using ::testing::Not;

Figures SomeFigures() {
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  figures.sessions = {{.name = "web", .running = true}};
  figures.stats.stored_bytes = 1000;
  figures.snapshots = std::make_shared<const std::vector<store::SnapshotSummary>>(std::vector<store::SnapshotSummary>{
      {.session = "web", .point_unix_ns = 1'699'999'000'000'000'000, .logical_bytes = 4000}});
  return figures;
}

RunRow RunOf(int64_t id, RunOutcome outcome) {
  RunRow run{.id = id, .schedule = "nightly", .kind = "capture", .session = "web", .outcome = outcome};
  run.started = absl::FromUnixSeconds(100);
  if (outcome != RunOutcome::kRunning) run.ended = absl::FromUnixSeconds(103);
  run.freeze_us = 30'000;
  run.pause_us = 3'000;
  return run;
}

TEST(MetricsTest, FiguresAreShownAsTheyAre) {
  Metrics metrics;
  std::string text = metrics.Render(SomeFigures());
  EXPECT_THAT(text, HasSubstr("stillpoint_repository_dedup_ratio 4\n"));
  EXPECT_THAT(text, HasSubstr("stillpoint_session_running{session=\"web\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("stillpoint_newest_snapshot_timestamp_seconds{session=\"web\"} 1699999000"));
}

TEST(MetricsTest, EachRunIsCountedOnceWhenItHasEnded) {
  Metrics metrics;
  Figures figures = SomeFigures();
  const std::string counted = "stillpoint_runs_total{kind=\"capture\",outcome=\"succeeded\",schedule=\"nightly\"} ";
  figures.runs = {RunOf(2, RunOutcome::kRunning), RunOf(1, RunOutcome::kSucceeded)};
  EXPECT_THAT(metrics.Render(figures), Not(HasSubstr(counted))) << "what was before the start is not counted";
  figures.runs = {RunOf(3, RunOutcome::kSucceeded), RunOf(2, RunOutcome::kSucceeded), RunOf(1, RunOutcome::kSucceeded)};
  for (int again = 0; again < 2; ++again) {
    std::string text = metrics.Render(figures);
    EXPECT_THAT(text, HasSubstr(counted + "2\n"));
    EXPECT_THAT(text, HasSubstr("stillpoint_pause_seconds_count{session=\"web\"} 2\n"));
    EXPECT_THAT(text, HasSubstr("stillpoint_pause_seconds_bucket{session=\"web\",le=\"0.0025\"} 0\n"));
    EXPECT_THAT(text, HasSubstr("stillpoint_pause_seconds_bucket{session=\"web\",le=\"0.005\"} 2\n"));
  }
}

TEST(MetricsTest, TheNewestEndDecidesNotWhatWasMissedSince) {
  Metrics metrics;
  Figures figures = SomeFigures();
  figures.runs = {RunOf(3, RunOutcome::kMissed), RunOf(2, RunOutcome::kFailed), RunOf(1, RunOutcome::kSucceeded)};
  figures.alerts = {
      {.kind = "failed", .schedule = "nightly", .session = "web", .message = "", .since = figures.now, .told = false}};
  std::string text = metrics.Render(figures);
  EXPECT_THAT(text,
              HasSubstr("stillpoint_last_run_success{kind=\"capture\",schedule=\"nightly\",session=\"web\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("stillpoint_alert_active{kind=\"failed\",schedule=\"nightly\",session=\"web\"} 1\n"));
}

}  // namespace
}  // namespace still::daemon
