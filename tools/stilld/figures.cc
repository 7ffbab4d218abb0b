#include "tools/stilld/figures.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"

namespace still::daemon {
namespace {

constexpr int64_t kMostRuns = 2000;
constexpr int64_t kMostDrills = 200;

}  // namespace

uint64_t Figures::logical_bytes() const {
  uint64_t bytes = 0;
  for (const manifestpb::Snapshot& snapshot : snapshots) {
    for (const manifestpb::Image& image : snapshot.images()) bytes += image.size();
  }
  return bytes;
}

absl::StatusOr<Figures> GatherFigures(schedule::Supervisor& supervisor) {
  Figures figures;
  figures.now = Clock::Real().Now();
  figures.repository = supervisor.repository_path();
  const std::shared_ptr<store::Repository> repository = supervisor.repository();
  STILL_ASSIGN_OR_RETURN(figures.sessions, supervisor.Sessions());
  STILL_ASSIGN_OR_RETURN(figures.schedules, supervisor.schedules().Schedules());
  STILL_ASSIGN_OR_RETURN(figures.snapshots, repository->ListSnapshots());
  STILL_ASSIGN_OR_RETURN(figures.runs, supervisor.book().ListRuns({.limit = kMostRuns}));
  STILL_ASSIGN_OR_RETURN(figures.drills, supervisor.book().ListDrills(kMostDrills));
  STILL_ASSIGN_OR_RETURN(figures.stats, repository->Stats());
  STILL_ASSIGN_OR_RETURN(auto remembered, supervisor.book().Remembered());
  for (const auto& [key, value] : remembered) {
    // "alert/stale/nightly/web"
    std::vector<std::string> parts = absl::StrSplit(key, '/');
    int64_t told = 0;
    if (parts.size() != 4 || parts[0] != "alert" || !absl::SimpleAtoi(value, &told)) continue;
    figures.alerts.push_back(
        {.kind = parts[1], .schedule = parts[2], .session = parts[3], .told = absl::FromUnixSeconds(told)});
  }
  return figures;
}

}  // namespace still::daemon
