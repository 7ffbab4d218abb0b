#include "snapshot/snapshots_in_use.h"

#include <grpcpp/grpcpp.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "proto/aliases.h"
#include "session/start_again.h"

namespace still::snapshot {
namespace {

// Of a session that was started over a disk server.
bool StillReads(const session::SessionRegistry& sessions, const session::SessionEntry& entry,
                absl::Duration answer_timeout) {
  // It can be started again, and what its disks lack is in the snapshot alone.
  if (!entry.alive) return session::NeedsDiskServer(entry.config);
  auto stub = sessions.Connect(entry.name);
  if (!stub.ok()) return !absl::IsNotFound(stub.status()) && !absl::IsUnavailable(stub.status());
  grpc::ClientContext call;
  call.set_deadline(absl::ToChronoTime(Clock::Real().Now() + answer_timeout));
  sessionpb::DescribeResponse description;
  if (!(*stub)->Describe(&call, {}, &description).ok()) return true;
  return !description.lazy_disks().empty();
}

}  // namespace

absl::StatusOr<SnapshotsInUse> FindSnapshotsInUse(const session::SessionRegistry& sessions,
                                                  absl::Duration answer_timeout) {
  STILL_ASSIGN_OR_RETURN(std::vector<session::SessionEntry> entries, sessions.List());
  std::map<std::string, std::vector<std::string>> readers;
  for (const session::SessionEntry& entry : entries) {
    // One that is just starting reads all of it.
    const bool starting = entry.alive && !entry.ready;
    if (!entry.config.has_disk_server() || (!starting && !StillReads(sessions, entry, answer_timeout))) continue;
    readers[entry.config.origin_snapshot()].push_back(entry.name);
  }
  SnapshotsInUse in_use;
  for (const auto& [id, names] : readers) {
    in_use[id] = names.size() == 1 ? absl::StrCat("session ", names[0], " reads its disks from it")
                                   : absl::StrCat("sessions ", absl::StrJoin(names, ", "), " read their disks from it");
  }
  return in_use;
}

absl::Status CheckNotInUse(const SnapshotsInUse& in_use, const std::string& id, const std::string& name) {
  auto found = in_use.find(id);
  if (found == in_use.end()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("snapshot ", name.empty() ? id : name, ": ", found->second,
                   "; complete them (`still hydrate`) or remove the session (`still rm`) first"));
}

}  // namespace still::snapshot
