// The status page as text; stilld_program_test.py looks at it with a browser.
#include "tools/stilld/status_page.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(StatusPageTest, NothingYetIsSaidInWords) {
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  figures.report.set_turned_unix_ns(absl::ToUnixNanos(figures.now));
  std::string page = RenderStatusPage(figures);
  EXPECT_THAT(page, HasSubstr("All is well"));
  EXPECT_THAT(page, HasSubstr("No schedules yet"));
  EXPECT_THAT(page, Not(HasSubstr("nan")));
}

TEST(StatusPageTest, ASchedulerThatDoesNotWorkIsNotWell) {
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_THAT(RenderStatusPage(figures), HasSubstr("not worked on"));
  figures.report.set_turned_unix_ns(absl::ToUnixNanos(figures.now - absl::Hours(1)));
  EXPECT_THAT(RenderStatusPage(figures), HasSubstr("not worked on"));
}

TEST(StatusPageTest, MachinesThatNothingProtectsAreShown) {
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  figures.report.set_turned_unix_ns(absl::ToUnixNanos(figures.now));
  schedulepb::CheckReport::Cover& web = *figures.report.add_machines();
  web.set_session("web");
  web.set_schedule("nightly");
  web.set_level("filesystem");
  web.set_newest_unix_ns(absl::ToUnixNanos(figures.now - absl::Hours(3)));
  web.set_newest_level("filesystem");
  EXPECT_THAT(RenderStatusPage(figures), HasSubstr("Every machine has a schedule"));
  figures.report.add_machines()->set_session("forgotten");
  const std::string page = RenderStatusPage(figures);
  EXPECT_THAT(page, HasSubstr("1 machine is protected by nothing"));
  EXPECT_THAT(page, HasSubstr("<td>forgotten<td><span class=bad>nothing"));
  EXPECT_THAT(page, HasSubstr("<td>web<td><span class=good>nightly</span>, filesystem<td>3h, filesystem"));
}

TEST(StatusPageTest, NothingThatIsShownCanBecomeMarkup) {
  const std::string evil = "<script>alert('1')</script>\"&\n";
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  figures.repository = evil;
  figures.sessions = {{.name = evil, .running = true}};
  figures.snapshots = std::make_shared<const std::vector<store::SnapshotSummary>>(
      std::vector<store::SnapshotSummary>{{.name = evil, .session = evil, .point_unix_ns = 1'699'999'000'000'000'000}});
  figures.report.set_turned_unix_ns(absl::ToUnixNanos(figures.now));
  figures.report.add_machines()->set_session(evil);
  figures.report.add_machines()->set_schedule(evil);
  figures.alerts = {
      {.kind = evil, .schedule = evil, .session = evil, .message = evil, .since = figures.now, .told = true}};
  store::RunRow run{.schedule = evil, .kind = "capture", .session = evil};
  run.outcome = store::RunOutcome::kSucceeded;
  run.freeze_us = 12345;
  run.message = evil;
  figures.runs.push_back(run);
  std::string page = RenderStatusPage(figures);
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(&#39;1&#39;)"));
  EXPECT_EQ(EscapeHtml("a\x01<"), "a &lt;");
}

TEST(StatusPageTest, LabelsAndWindowsAreDrawn) {
  Figures figures;
  figures.now = absl::FromUnixSeconds(1'700'000'000);
  std::vector<store::SnapshotSummary> snapshots;
  for (auto level : {manifestpb::Consistency::CRASH, manifestpb::Consistency::APPLICATION}) {
    snapshots.push_back({.session = "web", .point_unix_ns = 1'699'990'000'000'000'000, .level = level});
  }
  figures.snapshots = std::make_shared<const std::vector<store::SnapshotSummary>>(std::move(snapshots));
  EXPECT_THAT(TimelineSvg(figures), HasSubstr("circle class=crash"));
  EXPECT_THAT(TimelineSvg(figures), HasSubstr("circle class=application"));
  store::RunRow run{.kind = "capture", .session = "web"};
  run.outcome = store::RunOutcome::kSucceeded;
  run.freeze_us = 30'000;
  run.pause_us = 3'000;
  figures.runs = {run};
  EXPECT_THAT(WindowsSvg(figures), HasSubstr("frozen 30 ms, paused 3 ms"));
}

}  // namespace
}  // namespace still::daemon
