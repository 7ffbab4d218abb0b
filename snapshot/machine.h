// Whose a snapshot is. Two hosts may each have a machine "web" in one repository, and a host may call two machines so,
// one after the other: names do not tell.
#pragma once

#include <string>
#include <vector>

#include "base/host_identity.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"
#include "session/control/session_registry.h"
#include "store/catalog/rows.h"

namespace still::snapshot {

struct MachineIdentity {
  HostIdentity host;
  std::string machine_id;  // Empty: not known, and then the name must do: of a machine that is gone.
  std::string session_id;
  std::string name;  // Of its session.
};

MachineIdentity IdentityOf(const HostIdentity& host, const sessionpb::SessionConfig& config);
// The machine that this host calls so, or called so when it is gone. Not pure: asks the registry.
absl::StatusOr<MachineIdentity> FindMachine(const session::SessionRegistry& sessions, const std::string& name);

// A snapshot of before there were machine ids is told by its session's id, or by the names of session and host.
bool IsSnapshotOf(const manifestpb::Snapshot& snapshot, const MachineIdentity& machine);
bool IsSnapshotOf(const store::SnapshotSummary& snapshot, const MachineIdentity& machine);

// One key for each snapshot; two are equal when both are of one machine. Old snapshots, without ids, go with the newest
// machine of the same names.
std::vector<std::string> MachineKeys(const std::vector<manifestpb::Snapshot>& snapshots);

}  // namespace still::snapshot
