#include "schedule/machines.h"

#include <algorithm>

namespace still::schedule {

std::map<std::string, Newest> NewestByLevel(const std::vector<manifestpb::Snapshot>& snapshots,
                                            const std::map<std::string, snapshot::MachineIdentity>& machines) {
  std::map<std::string, Newest> newest;
  for (const manifestpb::Snapshot& one : snapshots) {
    for (const auto& [session, machine] : machines) {
      if (!snapshot::IsSnapshotOf(one, machine)) continue;
      const Level level = std::max(one.consistency().level(), manifestpb::Consistency::CRASH);
      newest[session][level] = absl::FromUnixNanos(one.point_unix_ns());  // The last of a level stays.
    }
  }
  return newest;
}

absl::StatusOr<std::vector<std::string>> DroppedByRetention(const Schedule& schedule,
                                                            const snapshot::MachineIdentity& machine,
                                                            const std::vector<manifestpb::Snapshot>& snapshots,
                                                            const snapshot::SnapshotsInUse& in_use, absl::Time now) {
  std::vector<std::string> dropped;
  if (!schedule.retention.has_value()) return dropped;
  std::vector<snapshot::RetentionCandidate> candidates;
  std::map<Level, std::string> newest;  // Of this level or a better one.
  for (const manifestpb::Snapshot& one : snapshots) {
    auto label = one.labels().find(std::string(kScheduleLabel));
    if (label == one.labels().end() || label->second != schedule.name()) continue;
    if (!snapshot::IsSnapshotOf(one, machine)) continue;
    candidates.push_back(snapshot::CandidateOf(one, machine.name, in_use));
    for (Level level :
         {manifestpb::Consistency::CRASH, manifestpb::Consistency::FILESYSTEM, manifestpb::Consistency::APPLICATION}) {
      if (one.consistency().level() >= level) newest[level] = one.id();
    }
  }
  STILL_ASSIGN_OR_RETURN(std::vector<snapshot::RetentionVerdict> verdicts,
                         snapshot::DecideRetention(candidates, *schedule.retention, now, schedule.timing.zone));
  for (const snapshot::RetentionVerdict& verdict : verdicts) {
    const bool best =
        std::any_of(newest.begin(), newest.end(), [&](const auto& of) { return of.second == verdict.id; });
    if (!verdict.keep && !best) dropped.push_back(verdict.id);
  }
  return dropped;
}

}  // namespace still::schedule
