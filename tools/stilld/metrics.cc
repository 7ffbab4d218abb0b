#include "tools/stilld/metrics.h"

#include <prometheus/gauge.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace still::daemon {
namespace {

using prometheus::Family;
using prometheus::Gauge;
using prometheus::Registry;
using store::RunOutcome;
using store::RunRow;

// Seconds. Windows: what guests notice, from a millisecond to the longest lease. Runs: from seconds to a day.
const prometheus::Histogram::BucketBoundaries kWindowBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                                0.25,  0.5,    1,     2.5,  5,     10,   30};
const prometheus::Histogram::BucketBoundaries kRunBuckets = {1, 5, 15, 60, 300, 900, 3600, 14400, 43200, 86400};

Family<Gauge>& GaugeFamily(Registry& registry, const std::string& name, const std::string& help) {
  return prometheus::BuildGauge().Name("stillpoint_" + name).Help(help).Register(registry);
}

constexpr char kLevelHelp[] = "Of snapshots: 0 none, 1 crash, 2 filesystem, 3 application";

double Seconds(absl::Time time) { return absl::ToDoubleSeconds(time - absl::UnixEpoch()); }

void PutRepository(Registry& registry, const Figures& figures) {
  const auto put = [&](const std::string& name, const std::string& help, double value) {
    GaugeFamily(registry, "repository_" + name, help).Add({}).Set(value);
  };
  const auto stored = static_cast<double>(figures.stats.stored_bytes);
  const auto logical = static_cast<double>(figures.logical_bytes());
  put("stored_bytes", "Everything that the repository stores", stored);
  put("bookkeeping_bytes", "Of these, what is not blocks", static_cast<double>(figures.stats.bookkeeping_bytes));
  put("logical_bytes", "All images of all snapshots as their guests see them", logical);
  put("dedup_ratio", "Logical bytes for each stored byte", stored > 0 ? logical / stored : 0);
  put("snapshots", "Snapshots", static_cast<double>(figures.stats.snapshots));
  put("vanished_snapshots", "Snapshots that are gone though nobody has forgotten them",
      static_cast<double>(figures.stats.vanished_snapshots));
  put("packs", "Packs", static_cast<double>(figures.stats.packs));
}

void PutSessions(Registry& registry, const Figures& figures) {
  Family<Gauge>& running = GaugeFamily(registry, "session_running", "Whether the machine runs, or ought to");
  for (const schedule::SessionState& session : figures.sessions) {
    running.Add({{"session", session.name}}).Set(session.running ? 1 : 0);
  }
  std::map<std::string, int64_t> newest;
  for (const store::SnapshotSummary& snapshot : *figures.snapshots) {  // By session, the newest last.
    if (figures.IsOurs(snapshot)) newest.insert_or_assign(newest.end(), snapshot.session, snapshot.point_unix_ns);
  }
  Family<Gauge>& times =
      GaugeFamily(registry, "newest_snapshot_timestamp_seconds", "The point of the newest snapshot of a session");
  for (const auto& [session, point] : newest) {
    times.Add({{"session", session}}).Set(Seconds(absl::FromUnixNanos(point)));
  }
}

void PutSchedules(Registry& registry, const Figures& figures) {
  Family<Gauge>& paused = GaugeFamily(registry, "schedule_paused", "Whether a schedule is paused");
  Family<Gauge>& limits = GaugeFamily(registry, "session_max_age_seconds",
                                      "How old the newest snapshot of a session may be by its strictest schedule");
  std::map<std::string, absl::Duration> strictest;
  for (const schedule::Schedule& schedule : figures.schedules) {
    paused.Add({{"schedule", schedule.name()}}).Set(schedule.definition.paused() ? 1 : 0);
    if (!schedule.captures() || schedule.definition.paused()) continue;
    const absl::Duration limit = schedule.MaxAge(figures.now);
    for (const schedule::SessionState& session : figures.sessions) {
      if (!session.running || !schedule.Fits(session.name)) continue;
      auto [at, added] = strictest.try_emplace(session.name, limit);
      at->second = std::min(at->second, limit);
    }
  }
  for (const auto& [session, limit] : strictest) {
    limits.Add({{"session", session}}).Set(absl::ToDoubleSeconds(limit));
  }
}

void PutResults(Registry& registry, const Figures& figures) {
  Family<Gauge>& good =
      GaugeFamily(registry, "last_run_success", "Whether the newest run that came to an end succeeded");
  Family<Gauge>& when = GaugeFamily(registry, "last_success_timestamp_seconds", "The end of the newest good run");
  std::set<std::vector<std::string>> ended;
  std::set<std::vector<std::string>> succeeded;
  for (const RunRow& run : figures.runs) {  // Newest first.
    const std::vector<std::string> key = {run.schedule, run.kind, run.session};
    const prometheus::Labels labels = {{"schedule", run.schedule}, {"kind", run.kind}, {"session", run.session}};
    const bool success = run.outcome == RunOutcome::kSucceeded;
    const bool counts = success || run.outcome == RunOutcome::kFailed || run.outcome == RunOutcome::kInterrupted;
    if (counts && ended.insert(key).second) good.Add(labels).Set(success ? 1 : 0);
    if (success && run.ended.has_value() && succeeded.insert(key).second) when.Add(labels).Set(Seconds(*run.ended));
  }
  Family<Gauge>& passed = GaugeFamily(registry, "last_drill_passed", "Whether the newest restore drill passed");
  Family<Gauge>& drilled = GaugeFamily(registry, "last_drill_timestamp_seconds", "When the newest drill began");
  std::set<std::string> drills;
  for (const store::DrillRecord& drill : figures.drills) {
    if (drill.state == store::DrillState::kRunning || !drills.insert(drill.session).second) continue;
    passed.Add({{"session", drill.session}}).Set(drill.state == store::DrillState::kPassed ? 1 : 0);
    drilled.Add({{"session", drill.session}}).Set(Seconds(drill.started));
  }
  Family<Gauge>& alerts = GaugeFamily(registry, "alert_active", "What is wrong now");
  Family<Gauge>& told = GaugeFamily(registry, "alert_told", "Whether the message of it has arrived anywhere");
  for (const Figures::Alert& alert : figures.alerts) {
    const prometheus::Labels labels = {{"kind", alert.kind}, {"schedule", alert.schedule}, {"session", alert.session}};
    alerts.Add(labels).Set(1);
    told.Add(labels).Set(alert.told ? 1 : 0);
  }
  GaugeFamily(registry, "scheduler_last_turn_timestamp_seconds", "When the schedules were last worked on in full")
      .Add({})
      .Set(Seconds(absl::FromUnixNanos(figures.report.turned_unix_ns())));
  Family<Gauge>& promised = GaugeFamily(registry, "promised_level", kLevelHelp);
  Family<Gauge>& reached = GaugeFamily(registry, "newest_snapshot_level", kLevelHelp);
  for (const auto& one : figures.report.machines()) {
    if (one.schedule().empty()) continue;
    const prometheus::Labels labels = {{"schedule", one.schedule()}, {"session", one.session()}};
    promised.Add(labels).Set(schedule::LevelOfName(one.level()));
    reached.Add(labels).Set(schedule::LevelOfName(one.newest_level()));
  }
}

}  // namespace

Metrics::Metrics()
    : runs_(prometheus::BuildCounter()
                .Name("stillpoint_runs_total")
                .Help("Runs by how they ended; also what was missed or skipped")
                .Register(registry_)),
      stored_(prometheus::BuildCounter()
                  .Name("stillpoint_snapshot_stored_bytes_total")
                  .Help("Bytes that snapshots added to the repository")
                  .Register(registry_)),
      duration_(
          prometheus::BuildHistogram().Name("stillpoint_run_seconds").Help("How long runs took").Register(registry_)),
      freeze_(prometheus::BuildHistogram()
                  .Name("stillpoint_freeze_seconds")
                  .Help("Freeze windows: how long writers in the guest waited")
                  .Register(registry_)),
      pause_(prometheus::BuildHistogram()
                 .Name("stillpoint_pause_seconds")
                 .Help("Pause windows: how long the machine stood still")
                 .Register(registry_)) {}

void Metrics::Count(const RunRow& run) {
  runs_.Add({{"schedule", run.schedule}, {"kind", run.kind}, {"outcome", schedule::OutcomeName(run.outcome)}})
      .Increment();
  if (!run.started.has_value() || !run.ended.has_value()) return;
  duration_.Add({{"schedule", run.schedule}, {"kind", run.kind}}, kRunBuckets)
      .Observe(absl::ToDoubleSeconds(*run.ended - *run.started));
  if (run.kind != "capture" || run.outcome != RunOutcome::kSucceeded) return;
  const prometheus::Labels session = {{"session", run.session}};
  stored_.Add(session).Increment(static_cast<double>(run.bytes_stored));
  freeze_.Add(session, kWindowBuckets).Observe(static_cast<double>(run.freeze_us) / 1e6);
  pause_.Add(session, kWindowBuckets).Observe(static_cast<double>(run.pause_us) / 1e6);
}

std::string Metrics::Render(const Figures& figures) {
  int64_t newest = newest_seen_;
  for (const RunRow& run : figures.runs) {
    newest = std::max(newest, run.id);
    const bool ended = run.outcome != RunOutcome::kRunning;
    const bool known = !begun_ ? ended : run.id <= newest_seen_;
    if (known && open_.count(run.id) == 0) continue;
    if (ended) {
      open_.erase(run.id);
      Count(run);
    } else {
      open_.insert(run.id);
    }
  }
  begun_ = true;
  newest_seen_ = newest;

  Registry now;
  // Absent, not zero: nobody knows.
  if (figures.repository_trouble.empty()) PutRepository(now, figures);
  PutSessions(now, figures);
  PutSchedules(now, figures);
  PutResults(now, figures);
  std::vector<prometheus::MetricFamily> all = registry_.Collect();
  std::vector<prometheus::MetricFamily> gauges = now.Collect();
  std::move(gauges.begin(), gauges.end(), std::back_inserter(all));
  return prometheus::TextSerializer().Serialize(all);
}

}  // namespace still::daemon
