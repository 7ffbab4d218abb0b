#include "tools/stilld/status_page.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/host_time_zone.h"
#include "base/quantity.h"

namespace still::daemon {
namespace {

using store::RunOutcome;
using store::RunRow;

constexpr absl::string_view kStyle = R"css(
:root { color-scheme: light dark; --text: #1d2129; --faint: #6b7280; --line: #d9dce3; --back: #fff; --card: #f6f7f9;
  --good: #1a7f4b; --fair: #b7791f; --bad: #c0392b; --strong: #2457a6; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --faint: #9ca3af; --line: #374151; --back: #14171c;
  --card: #1d2229; --good: #4ade80; --fair: #fbbf24; --bad: #f87171; --strong: #7aa7f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1060px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 28px 0 8px; } p { margin: 4px 0; }
.faint, .axis { color: var(--faint); fill: var(--faint); font-size: 12px; }
section, .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: 12px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
td.wide { white-space: normal; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--text); font-size: 12px; }
svg .axis { fill: var(--faint); font-size: 11px; } .grid { stroke: var(--line); }
.good, .succeeded { color: var(--good); } .bad, .failed, .interrupted { color: var(--bad); }
.missed, .fair { color: var(--fair); } .skipped { color: var(--faint); } .running { color: var(--strong); }
circle { stroke: var(--back); } .application { fill: var(--strong); } .filesystem { fill: var(--good); }
.crash { fill: var(--fair); } .unknown { fill: var(--faint); } rect.freeze { fill: var(--strong); opacity: .45; }
rect.pause { fill: var(--strong); } .key { display: inline-block; width: 10px; height: 10px; border-radius: 5px;
  margin: 0 5px 0 14px; } .cards { display: flex; flex-wrap: wrap; gap: 12px; } .card { background: var(--card);
  border-radius: 8px; padding: 10px 16px; min-width: 130px; } .card b { display: block; font-size: 20px; }
.alert { border-left: 4px solid var(--bad); background: var(--card); padding: 8px 12px; margin: 6px 0; }
)css";

std::string Bytes(double bytes) {
  static const char* const kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  for (; bytes >= 1024 && unit + 1 < std::size(kUnits); ++unit) bytes /= 1024;
  return absl::StrFormat("%.*f %s", unit == 0 ? 0 : 1, bytes, kUnits[unit]);
}

std::string When(std::optional<absl::Time> time) {
  if (!time.has_value()) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", *time, HostTimeZone::Real().Now());
}

std::string Ago(absl::Time time, absl::Time now) {
  // Two units are enough for people.
  absl::Duration age = std::max(now - time, absl::ZeroDuration());
  if (age > absl::Hours(48))
    age = absl::Trunc(age, absl::Hours(1));
  else if (age > absl::Hours(1))
    age = absl::Trunc(age, absl::Minutes(1));
  return ShortDuration(age);
}

std::string Card(absl::string_view label, absl::string_view value) {
  return absl::StrCat("<div class=card><b>", EscapeHtml(value), "</b>", EscapeHtml(label), "</div>");
}

std::string Alerts(const Figures& figures) {
  const absl::Time turned = absl::FromUnixNanos(figures.report.turned_unix_ns());
  if (figures.now - turned > schedule::kLongestTurn) {
    return absl::StrCat("<p id=health class=bad>The schedules are not worked on (last ",
                        figures.report.turned_unix_ns() == 0 ? "never" : When(turned), ").</p>");
  }
  if (figures.alerts.empty()) return "<p id=health class=good>All is well.</p>";
  std::string html = absl::StrCat("<p id=health class=bad>", figures.alerts.size(), " open alerts</p>");
  for (const Figures::Alert& alert : figures.alerts) {
    absl::StrAppend(&html, "<div class=alert>", EscapeHtml(alert.kind),
                    alert.schedule.empty() ? "" : absl::StrCat(": schedule ", EscapeHtml(alert.schedule)),
                    alert.session.empty() ? "" : absl::StrCat(", session ", EscapeHtml(alert.session)), " ",
                    EscapeHtml(alert.message), " <span class=faint>since ", When(alert.since),
                    alert.told ? ", told" : ", <b>nobody could be told yet</b>", "</span></div>");
  }
  return html;
}

std::string LevelText(int level) {
  const std::string name = schedule::NameOfLevel(static_cast<schedule::Level>(level));
  return name.empty() ? "-" : name;
}

std::string Sessions(const Figures& figures) {
  struct Known {
    uint64_t snapshots = 0;
    const store::SnapshotSummary* newest = nullptr;
  };
  std::map<std::string, Known> known;
  for (const store::SnapshotSummary& snapshot : *figures.snapshots) {
    if (!figures.IsOurs(snapshot)) continue;
    Known& of = known[snapshot.session];
    ++of.snapshots;
    of.newest = &snapshot;  // The last that was committed.
  }
  std::string html =
      "<table id=sessions><tr><th>Session<th>State<th>Newest snapshot<th>Age<th>Consistency<th>Snapshots";
  for (const schedule::SessionState& session : figures.sessions) {
    const Known& of = known[session.name];
    absl::StrAppend(&html, "<tr><td>", EscapeHtml(session.name),
                    session.running ? "<td class=good>running" : "<td class=faint>ended");
    if (of.newest == nullptr) {
      absl::StrAppend(&html, figures.repository_trouble.empty() ? "<td class=fair>none<td>-<td>-<td>0"
                                                                : "<td class=fair>unknown<td>-<td>-<td>-");
      continue;
    }
    absl::Time point = absl::FromUnixNanos(of.newest->point_unix_ns);
    absl::StrAppend(&html, "<td>", When(point), "<td>", Ago(point, figures.now), "<td>", LevelText(of.newest->level),
                    "<td>", of.snapshots);
  }
  return absl::StrCat(html, "</table>");
}

std::string ProtectionOf(const schedulepb::CheckReport::Cover& cover) {
  if (cover.schedule().empty()) return "<span class=bad>nothing</span>";
  return absl::StrCat("<span class=", cover.stale() ? "bad" : "good", ">", EscapeHtml(cover.schedule()), "</span>",
                      cover.level().empty() ? "" : absl::StrCat(", ", EscapeHtml(cover.level())),
                      cover.stale() ? ", too old" : "");
}

// What protects each machine of this host, and which are protected by nothing.
std::string Protection(const Figures& figures) {
  size_t unprotected = 0;
  std::string rows;
  for (const auto& cover : figures.report.machines()) {
    if (cover.schedule().empty()) ++unprotected;
    std::string newest = "-";
    if (cover.newest_unix_ns() != 0) {
      newest = absl::StrCat(Ago(absl::FromUnixNanos(cover.newest_unix_ns()), figures.now), ", ",
                            EscapeHtml(cover.newest_level()));
    }
    absl::StrAppend(&rows, "<tr><td>", EscapeHtml(cover.session()), "<td>", ProtectionOf(cover), "<td>", newest, "<td>",
                    cover.schedule().empty() ? "-" : ShortDuration(absl::Seconds(cover.max_age_s())));
  }
  const std::string verdict =
      unprotected == 0 ? "<p id=unprotected class=good>Every machine has a schedule.</p>"
                       : absl::StrCat("<p id=unprotected class=bad>", unprotected,
                                      unprotected == 1 ? " machine is" : " machines are", " protected by nothing.</p>");
  return absl::StrCat(verdict,
                      "<table id=protection><tr><th>Machine<th>Protected by<th>Newest good snapshot<th>At most", rows,
                      "</table>");
}

std::string Timing(const schedule::Schedule& schedule) {
  const auto& definition = schedule.definition;
  return definition.every().empty() ? absl::StrJoin(definition.calendar(), "; ")
                                    : absl::StrCat("every ", definition.every());
}

std::string Schedules(const Figures& figures) {
  if (figures.schedules.empty()) return "<p>No schedules yet: see <code>still schedule add --help</code>.</p>";
  std::string html =
      "<table id=schedules><tr><th>Schedule<th>Kind<th>When<th>Next<th>Last runs, newest first<th>Last message";
  for (const schedule::Schedule& schedule : figures.schedules) {
    std::optional<absl::Time> next = schedule.timing.Next(figures.now);
    absl::StrAppend(&html, "<tr><td>", EscapeHtml(schedule.name()), "<td>",
                    schedule::KindName(schedule.definition.kind()), "<td>", EscapeHtml(Timing(schedule)), "<td>",
                    schedule.definition.paused() ? "paused" : When(next), "<td>");
    std::string message;
    int shown = 0;
    for (const RunRow& run : figures.runs) {
      if (run.schedule != schedule.name()) continue;
      if (shown++ == 20) break;
      const std::string outcome = schedule::OutcomeName(run.outcome);
      if (message.empty()) message = run.message;
      absl::StrAppend(&html, "<span class=", outcome, " title=\"",
                      EscapeHtml(absl::StrCat(When(run.planned), " ", run.session, " ", outcome, " ", run.message)),
                      "\">", run.outcome == RunOutcome::kSucceeded ? "&#9679;" : "&#9632;", "</span> ");
    }
    absl::StrAppend(&html, "<td class=wide>", EscapeHtml(message));
  }
  return absl::StrCat(html, "</table>");
}

std::string Repository(const Figures& figures) {
  if (!figures.repository_trouble.empty()) {
    return absl::StrCat("<p id=repository class=bad>It cannot be read now: ", EscapeHtml(figures.repository_trouble),
                        "</p>");
  }
  const auto stored = static_cast<double>(figures.stats.stored_bytes);
  const auto logical = static_cast<double>(figures.logical_bytes());
  std::string vanished;
  if (figures.stats.vanished_snapshots > 0) {
    vanished =
        absl::StrCat("<p id=vanished class=bad>", figures.stats.vanished_snapshots,
                     " snapshots have vanished though nobody has forgotten them: see <code>still list</code>.</p>");
  }
  return absl::StrCat(vanished, "<div id=repository class=cards>",
                      Card("snapshots", absl::StrCat(figures.snapshots->size())), Card("stored", Bytes(stored)),
                      Card("as guests see it", Bytes(logical)),
                      Card("times smaller", stored > 0 ? absl::StrFormat("%.1f", logical / stored) : "-"),
                      Card("packs", absl::StrCat(figures.stats.packs)), "</div>");
}

std::string Legend() {
  std::string html = "<p class=faint>";
  for (const char* level : {"application", "filesystem", "crash"}) {
    absl::StrAppend(&html, "<svg class=key viewBox=\"0 0 10 10\" style=\"width:10px\"><circle class=", level,
                    " cx=5 cy=5 r=5 /></svg>", level, "-consistent");
  }
  return absl::StrCat(html, "</p>");
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += absl::ascii_iscntrl(static_cast<unsigned char>(c)) ? ' ' : c;
    }
  }
  return escaped;
}

std::string RenderStatusPage(const Figures& figures) {
  char host[256] = {};
  (void)::gethostname(host, sizeof host - 1);  // Only for people.
  return absl::StrCat(
      "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport "
      "content=\"width=device-width, initial-scale=1\"><meta http-equiv=refresh content=30><title>Stillpoint on ",
      EscapeHtml(host), "</title><style>", kStyle, "</style></head><body><h1>Stillpoint on ", EscapeHtml(host),
      "</h1><p class=faint>", EscapeHtml(figures.repository), ", as of ", When(figures.now), "</p>", Alerts(figures),
      "<h2>Sessions</h2><section>", Sessions(figures), "</section><h2>Protection</h2><section>", Protection(figures),
      "</section><h2>Snapshots</h2>", Legend(), TimelineSvg(figures),
      "<h2>Windows</h2><p class=faint>What guests noticed: pale, how long their writers waited (freeze); strong, how "
      "long the machine stood still (pause).</p>",
      WindowsSvg(figures), "<h2>Schedules</h2><section>", Schedules(figures), "</section><h2>Repository</h2>",
      Repository(figures), "</body></html>\n");
}

}  // namespace still::daemon
