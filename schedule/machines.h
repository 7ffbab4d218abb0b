// Which snapshots are those of a schedule's machines: what counts for their freshness, what a drill tries, and what
// retention may drop. Pure.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/manifest.pb.h"
#include "schedule/schedule.h"
#include "schedule/scheduler_edges.h"
#include "snapshot/machine.h"
#include "snapshot/retention.h"
#include "snapshot/snapshots_in_use.h"

namespace still::schedule {

// By session, of those machines that have a snapshot. Newest by the order of commits, whatever the order of `snapshots`.
std::map<std::string, Newest> NewestByLevel(const std::vector<store::SnapshotSummary>& snapshots,
                                            const std::map<std::string, snapshot::MachineIdentity>& machines);

// The manifest of the snapshot with this id (Repository::FindSnapshot).
using FindManifest = std::function<absl::StatusOr<manifestpb::Snapshot>(const std::string& id)>;
// This machine's snapshots, in the order of their commits. Asks for their manifests and for no others: a repository has
// those of many machines. One that is damaged, or was forgotten meanwhile, is left out.
absl::StatusOr<std::vector<manifestpb::Snapshot>> SnapshotsOf(const snapshot::MachineIdentity& machine,
                                                              const std::vector<store::SnapshotSummary>& snapshots,
                                                              const FindManifest& find);
// The last of them, by one manifest when it can be read. NOT_FOUND.
absl::StatusOr<manifestpb::Snapshot> NewestSnapshotOf(const snapshot::MachineIdentity& machine,
                                                      const std::vector<store::SnapshotSummary>& snapshots,
                                                      const FindManifest& find);

// The ids of the snapshots that the schedule took of this machine, no others, and that its retention does not keep. Never
// the newest of each level: bad days must not push out the last snapshot that keeps what is promised.
absl::StatusOr<std::vector<std::string>> DroppedByRetention(const Schedule& schedule,
                                                            const snapshot::MachineIdentity& machine,
                                                            const std::vector<manifestpb::Snapshot>& snapshots,
                                                            const snapshot::SnapshotsInUse& in_use, absl::Time now);

}  // namespace still::schedule
