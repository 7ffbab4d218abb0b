#include "snapshot/snapshots_in_use.h"

#include <grpcpp/grpcpp.h>

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "proto/aliases.h"

namespace still::snapshot {
namespace {

// The session lives, and was started over a disk server.
bool StillReads(const session::SessionRegistry& sessions, const std::string& name, absl::Duration answer_timeout) {
  auto stub = sessions.Connect(name);
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
    if (!entry.alive || !entry.config.has_disk_server()) continue;
    // One that is just starting reads all of it.
    if (entry.ready && !StillReads(sessions, entry.name, answer_timeout)) continue;
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
  return absl::FailedPreconditionError(absl::StrCat("snapshot ", name.empty() ? id : name, ": ", found->second,
                                                    "; `still hydrate` or stop what reads it first"));
}

}  // namespace still::snapshot
