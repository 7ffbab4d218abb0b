#include "snapshot/machine.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "session/machine_id.h"

namespace still::snapshot {
namespace {

// What a snapshot says of whose it is.
struct Owner {
  absl::string_view host_id;
  absl::string_view host;
  absl::string_view machine_id;
  absl::string_view session_id;
  absl::string_view session;
};

bool IsOwnedBy(const Owner& owner, const MachineIdentity& machine) {
  if (!owner.machine_id.empty() && !machine.machine_id.empty()) {
    // A machine that went on elsewhere (restored with its identity) is looked after there.
    const bool here = owner.host_id == machine.host.id || machine.host.id.empty();
    return here && owner.machine_id == machine.machine_id;
  }
  if (owner.session_id.empty()) return false;  // An import: of a file, whatever its name.
  if (owner.session_id == machine.session_id) return true;
  if (!owner.host_id.empty() && owner.host_id != machine.host.id) return false;
  return owner.session == machine.name && owner.host == machine.host.name;
}

}  // namespace

MachineIdentity IdentityOf(const HostIdentity& host, const sessionpb::SessionConfig& config) {
  return {
      .host = host, .machine_id = session::MachineIdOf(host, config), .session_id = config.id(), .name = config.name()};
}

absl::StatusOr<MachineIdentity> FindMachine(const session::SessionRegistry& sessions, const std::string& name) {
  STILL_ASSIGN_OR_RETURN(HostIdentity host, ReadHostIdentity(sessions.root()));
  absl::StatusOr<session::SessionEntry> entry = sessions.Find(name);
  if (entry.ok()) return IdentityOf(host, entry->config);
  if (!absl::IsNotFound(entry.status())) return entry.status();
  return MachineIdentity{.host = std::move(host), .machine_id = "", .session_id = "", .name = name};
}

bool IsSnapshotOf(const manifestpb::Snapshot& snapshot, const MachineIdentity& machine) {
  return IsOwnedBy({.host_id = snapshot.host_id(),
                    .host = snapshot.host(),
                    .machine_id = snapshot.machine_id(),
                    .session_id = snapshot.session_id(),
                    .session = snapshot.session()},
                   machine);
}

bool IsSnapshotOf(const store::SnapshotSummary& snapshot, const MachineIdentity& machine) {
  return IsOwnedBy({.host_id = snapshot.host_id,
                    .host = snapshot.host,
                    .machine_id = snapshot.machine_id,
                    .session_id = snapshot.session_id,
                    .session = snapshot.session},
                   machine);
}

std::vector<std::string> MachineKeys(const std::vector<manifestpb::Snapshot>& snapshots) {
  // By the names of host and session: the machine whose snapshot came last.
  std::map<std::pair<std::string, std::string>, std::string> newest;
  const auto names = [](const manifestpb::Snapshot& one) { return std::make_pair(one.host(), one.session()); };
  const auto key = [](const manifestpb::Snapshot& one) { return absl::StrCat(one.host_id(), "/", one.machine_id()); };
  for (const manifestpb::Snapshot& one : snapshots) {
    if (!one.machine_id().empty()) newest[names(one)] = key(one);
  }
  std::vector<std::string> keys;
  keys.reserve(snapshots.size());
  for (const manifestpb::Snapshot& one : snapshots) {
    if (!one.machine_id().empty()) {
      keys.push_back(key(one));
      continue;
    }
    auto known = newest.find(names(one));
    keys.push_back(known != newest.end() ? known->second
                                         : absl::StrCat("names/", one.host_id(), "/", one.host(), "/", one.session()));
  }
  return keys;
}

}  // namespace still::snapshot
