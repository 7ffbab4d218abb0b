#include "tools/stilld/figures.h"

#include <set>
#include <utility>

#include "base/clock.h"
#include "store/snapshot_reference.h"

namespace still::daemon {
namespace {

constexpr int64_t kMostRuns = 2000;
constexpr int64_t kMostDrills = 200;
constexpr int64_t kMostOfOne = 20;
constexpr absl::Duration kCountAgainAfter = absl::Minutes(1);

// What the repository says. Whatever it does not say is no reason to be silent about all else.
absl::Status ReadRepository(schedule::Supervisor& supervisor, CountedStats& stats, Figures& figures) {
  STILL_ASSIGN_OR_RETURN(const std::shared_ptr<store::Repository> repository, supervisor.repository());
  STILL_ASSIGN_OR_RETURN(auto snapshots, repository->Summaries());
  STILL_ASSIGN_OR_RETURN(figures.stats, stats.Of(*repository));
  figures.snapshots = std::move(snapshots);
  return absl::OkStatus();
}

}  // namespace

uint64_t Figures::logical_bytes() const {
  uint64_t bytes = 0;
  for (const store::SnapshotSummary& snapshot : *snapshots) bytes += snapshot.logical_bytes;
  return bytes;
}

bool Figures::IsOurs(const store::SnapshotSummary& snapshot) const { return store::IsOfHost(snapshot, here); }

absl::StatusOr<store::RepositoryStats> CountedStats::Of(store::Repository& repository) {
  absl::MutexLock lock(&mutex_);
  const absl::Duration time = Clock::Real().Monotonic();
  if (time - counted_at_ < kCountAgainAfter) return stats_;
  STILL_ASSIGN_OR_RETURN(stats_, repository.Stats());
  counted_at_ = time;
  return stats_;
}

absl::StatusOr<Figures> GatherFigures(schedule::Supervisor& supervisor, CountedStats& stats) {
  Figures figures;
  figures.now = Clock::Real().Now();
  figures.repository = supervisor.repository_path();
  figures.here = supervisor.here();
  STILL_ASSIGN_OR_RETURN(figures.sessions, supervisor.KnownSessions());
  STILL_ASSIGN_OR_RETURN(figures.schedules, supervisor.schedules().Schedules());
  if (absl::Status read = ReadRepository(supervisor, stats, figures); !read.ok()) {
    figures.repository_trouble = std::string(read.message());
  }
  STILL_ASSIGN_OR_RETURN(figures.runs, supervisor.book().ListRuns({.limit = kMostRuns}));
  // What runs rarely must not fall out of the newest rows: its last verdict counts until there is another.
  std::set<int64_t> known;
  for (const store::RunRow& run : figures.runs) known.insert(run.id);
  for (const schedule::Schedule& schedule : figures.schedules) {
    if (schedule.per_session()) continue;
    STILL_ASSIGN_OR_RETURN(auto rare, supervisor.book().ListRuns({.schedule = schedule.name(), .limit = kMostOfOne}));
    for (store::RunRow& run : rare) {
      if (known.insert(run.id).second) figures.runs.push_back(std::move(run));
    }
  }
  STILL_ASSIGN_OR_RETURN(figures.drills, supervisor.book().ListDrills(kMostDrills));
  STILL_ASSIGN_OR_RETURN(auto remembered, supervisor.book().Remembered());
  for (const auto& [key, alert] : schedule::ParseAlerts(remembered)) {
    if (alert.over.has_value() || alert.quiet) continue;
    figures.alerts.push_back({.kind = schedule::EventName(alert.event.kind),
                              .schedule = alert.event.schedule,
                              .session = alert.event.session,
                              .message = alert.event.message,
                              .since = alert.event.at,
                              .told = alert.delivered()});
  }
  STILL_ASSIGN_OR_RETURN(figures.report, supervisor.Report());
  return figures;
}

}  // namespace still::daemon
