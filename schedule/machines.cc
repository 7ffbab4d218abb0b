#include "schedule/machines.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace still::schedule {

namespace {

// One of the machines that are asked about, and the newest snapshots that were found so far.
struct Asked {
  const std::string* session;
  const snapshot::MachineIdentity* machine;
  std::map<Level, const store::SnapshotSummary*> newest;
};

bool CommittedBefore(const store::SnapshotSummary& a, const store::SnapshotSummary& b) {
  return std::tie(a.sequence, a.committed_unix_ns, a.id) < std::tie(b.sequence, b.committed_unix_ns, b.id);
}

std::vector<const store::SnapshotSummary*> ByCommit(const snapshot::MachineIdentity& machine,
                                                    const std::vector<store::SnapshotSummary>& snapshots) {
  std::vector<const store::SnapshotSummary*> mine;
  for (const store::SnapshotSummary& one : snapshots) {
    if (snapshot::IsSnapshotOf(one, machine)) mine.push_back(&one);
  }
  std::sort(mine.begin(), mine.end(), [](const auto* a, const auto* b) { return CommittedBefore(*a, *b); });
  return mine;
}

// The repository has said so in its log.
bool IsLeftOut(const absl::Status& status) { return absl::IsDataLoss(status) || absl::IsNotFound(status); }

}  // namespace

std::map<std::string, Newest> NewestByLevel(const std::vector<store::SnapshotSummary>& snapshots,
                                            const std::map<std::string, snapshot::MachineIdentity>& machines) {
  std::vector<Asked> all;
  all.reserve(machines.size());  // The map below points into it.
  // Whoever a snapshot may be of is found by what it carries: asking every machine of every snapshot would take minutes.
  std::unordered_map<std::string, std::vector<Asked*>> asked_by;
  for (const auto& [session, machine] : machines) {
    Asked* asked = &all.emplace_back(Asked{.session = &session, .machine = &machine, .newest = {}});
    if (!machine.machine_id.empty()) asked_by[machine.machine_id].push_back(asked);
    if (!machine.session_id.empty()) asked_by[machine.session_id].push_back(asked);
    asked_by[machine.name].push_back(asked);
  }
  for (const store::SnapshotSummary& one : snapshots) {
    const Level level = std::max(static_cast<Level>(one.level), manifestpb::Consistency::CRASH);
    for (const std::string* carried : {&one.machine_id, &one.session_id, &one.session}) {
      auto found = asked_by.find(*carried);
      if (carried->empty() || found == asked_by.end()) continue;
      for (Asked* asked : found->second) {
        auto known = asked->newest.find(level);
        // Also what was found by another of its names.
        if (known != asked->newest.end() && !CommittedBefore(*known->second, one)) continue;
        if (snapshot::IsSnapshotOf(one, *asked->machine)) asked->newest[level] = &one;
      }
    }
  }
  std::map<std::string, Newest> newest;
  for (const Asked& asked : all) {
    for (const auto& [level, one] : asked.newest) {
      newest[*asked.session][level] = absl::FromUnixNanos(one->point_unix_ns);
    }
  }
  return newest;
}

absl::StatusOr<std::vector<manifestpb::Snapshot>> SnapshotsOf(const snapshot::MachineIdentity& machine,
                                                              const std::vector<store::SnapshotSummary>& snapshots,
                                                              const FindManifest& find) {
  std::vector<manifestpb::Snapshot> found;
  for (const store::SnapshotSummary* one : ByCommit(machine, snapshots)) {
    absl::StatusOr<manifestpb::Snapshot> manifest = find(one->id);
    if (manifest.ok()) {
      found.push_back(*std::move(manifest));
    } else if (!IsLeftOut(manifest.status())) {
      return manifest.status();
    }
  }
  return found;
}

absl::StatusOr<manifestpb::Snapshot> NewestSnapshotOf(const snapshot::MachineIdentity& machine,
                                                      const std::vector<store::SnapshotSummary>& snapshots,
                                                      const FindManifest& find) {
  const std::vector<const store::SnapshotSummary*> mine = ByCommit(machine, snapshots);
  for (auto one = mine.rbegin(); one != mine.rend(); ++one) {
    absl::StatusOr<manifestpb::Snapshot> manifest = find((*one)->id);
    if (manifest.ok() || !IsLeftOut(manifest.status())) return manifest;
  }
  return absl::NotFoundError(absl::StrCat("there is no snapshot of ", machine.name, " that can be read"));
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
