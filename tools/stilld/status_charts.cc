// The status page's charts.
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/host_time_zone.h"
#include "tools/stilld/status_page.h"

namespace still::daemon {
namespace {

using store::SnapshotSummary;

constexpr double kWidth = 960;
constexpr double kLeft = 150;  // For names.
constexpr double kRow = 24;
constexpr absl::Duration kLongestTimeline = absl::Hours(24 * 30);
constexpr size_t kMostRows = 200;
constexpr size_t kMostBars = 60;

std::string LevelOf(const SnapshotSummary& snapshot) {
  const std::string name = schedule::NameOfLevel(static_cast<schedule::Level>(snapshot.level));
  return name.empty() ? "unknown" : name;
}

std::string LocalTime(absl::Time time, const char* format) {
  return absl::FormatTime(format, time, HostTimeZone::Real().Now());
}

std::string Milliseconds(uint64_t microseconds) {
  return absl::StrFormat("%.3g ms", static_cast<double>(microseconds) / 1000);
}

// Dates below the rows, at most eight.
std::string TimeAxis(absl::Time from, absl::Time until, double bottom) {
  std::string svg;
  const double scale = (kWidth - kLeft - 20) / absl::ToDoubleSeconds(until - from);
  for (int tick = 0; tick <= 6; ++tick) {
    absl::Time time = from + (until - from) * tick / 6;
    double x = kLeft + absl::ToDoubleSeconds(time - from) * scale;
    absl::StrAppendFormat(&svg, "<line class=grid x1=%.1f x2=%.1f y1=4 y2=%.1f />", x, x, bottom);
    absl::StrAppendFormat(&svg, "<text class=axis x=%.1f y=%.1f text-anchor=middle>%s</text>", x, bottom + 14,
                          LocalTime(time, until - from > absl::Hours(48) ? "%d %b" : "%H:%M"));
  }
  return svg;
}

}  // namespace

std::string TimelineSvg(const Figures& figures) {
  std::map<std::string, std::vector<const SnapshotSummary*>> rows;
  absl::Time oldest = figures.now - absl::Minutes(10);
  for (const SnapshotSummary& snapshot : *figures.snapshots) {
    absl::Time point = absl::FromUnixNanos(snapshot.point_unix_ns);
    if (figures.now - point > kLongestTimeline || !figures.IsOurs(snapshot)) continue;
    rows[snapshot.session].push_back(&snapshot);
    oldest = std::min(oldest, point);
  }
  for (const schedule::SessionState& session : figures.sessions) rows[session.name];
  if (rows.empty()) return "<p>No sessions and no snapshots yet.</p>";
  const double scale = (kWidth - kLeft - 20) / absl::ToDoubleSeconds(figures.now - oldest);
  const double bottom = 8 + kRow * static_cast<double>(std::min(rows.size(), kMostRows));
  std::string svg = absl::StrFormat(
      "<svg id=timeline role=img aria-label=\"Snapshots of each session by time\" viewBox=\"0 0 %.0f %.0f\">", kWidth,
      bottom + 22);
  absl::StrAppend(&svg, TimeAxis(oldest, figures.now, bottom));
  double y = 8 + kRow / 2;
  size_t shown = 0;
  for (const auto& [session, snapshots] : rows) {
    if (++shown > kMostRows) break;
    absl::StrAppendFormat(&svg, "<text x=4 y=%.1f>%s</text>", y + 4, EscapeHtml(session.substr(0, 20)));
    for (const SnapshotSummary* snapshot : snapshots) {
      absl::Time point = absl::FromUnixNanos(snapshot->point_unix_ns);
      const std::string level = LevelOf(*snapshot);
      absl::StrAppendFormat(
          &svg, "<circle class=%s cx=%.1f cy=%.1f r=5><title>%s</title></circle>", level,
          kLeft + absl::ToDoubleSeconds(point - oldest) * scale, y,
          EscapeHtml(absl::StrCat(snapshot->session, ", ", LocalTime(point, "%Y-%m-%d %H:%M:%S"), ", ", level, ", ",
                                  snapshot->name.empty() ? snapshot->id.substr(0, 12) : snapshot->name)));
    }
    y += kRow;
  }
  return absl::StrCat(svg, "</svg>");
}

std::string WindowsSvg(const Figures& figures) {
  std::vector<const store::RunRow*> bars;
  uint64_t longest = 1000;
  for (const store::RunRow& run : figures.runs) {
    if (run.kind != "capture" || run.outcome != store::RunOutcome::kSucceeded || bars.size() == kMostBars) continue;
    bars.push_back(&run);
    longest = std::max({longest, run.freeze_us, run.pause_us});
  }
  if (bars.empty()) return "<p>No scheduled snapshot was taken yet.</p>";
  std::reverse(bars.begin(), bars.end());
  // Logarithmic, from 0.1 ms: pauses and freezes differ by orders of magnitude.
  constexpr double kHeight = 160;
  const double decades = std::log10(static_cast<double>(longest) / 100);
  const auto height = [&](uint64_t us) {
    return us <= 100 ? 0.0 : kHeight * std::log10(static_cast<double>(us) / 100) / decades;
  };
  std::string svg =
      absl::StrFormat("<svg id=windows role=img aria-label=\"Freeze and pause windows\" viewBox=\"0 0 %.0f %.0f\">",
                      kWidth, kHeight + 30);
  for (uint64_t us = 1000; us <= longest; us *= 10) {
    double y = 8 + kHeight - height(us);
    absl::StrAppendFormat(&svg, "<line class=grid x1=%.1f x2=%.1f y1=%.1f y2=%.1f />", kLeft, kWidth - 10, y, y);
    absl::StrAppendFormat(&svg, "<text class=axis x=%.1f y=%.1f text-anchor=end>%s</text>", kLeft - 8, y + 4,
                          Milliseconds(us));
  }
  const double step = std::min(40.0, (kWidth - kLeft - 20) / static_cast<double>(bars.size()));
  double x = kLeft + 2;
  for (const store::RunRow* run : bars) {
    const std::string title =
        EscapeHtml(absl::StrCat(run->session, ", ", LocalTime(run->started.value_or(run->planned), "%Y-%m-%d %H:%M:%S"),
                                ": frozen ", Milliseconds(run->freeze_us), ", paused ", Milliseconds(run->pause_us)));
    const double width = step * 0.4;
    for (const auto& [name, us] :
         {std::pair<const char*, uint64_t>{"freeze", run->freeze_us}, {"pause", run->pause_us}}) {
      double bar = height(us);
      double at = x + (name[0] == 'p' ? width : 0);
      absl::StrAppendFormat(&svg, "<rect class=%s x=%.1f y=%.1f width=%.1f height=%.1f><title>%s</title></rect>", name,
                            at, 8 + kHeight - bar, width, bar, title);
    }
    x += step;
  }
  return absl::StrCat(svg, "</svg>");
}

}  // namespace still::daemon
