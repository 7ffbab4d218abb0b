// Which snapshots sessions of this host still read: what must not be forgotten under them.
//
// A lazily restored session whose disks are not complete can be served only as long as its snapshot is listed. Without it
// the server does not start again, and the guest is held for good. Sessions of other hosts are not known here: `still
// hold` is for these.
#pragma once

#include <map>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/control/session_registry.h"

namespace still::snapshot {

// Ids of snapshots, with a phrase for people each: "session web reads its disks from it".
using SnapshotsInUse = std::map<std::string, std::string>;

// A session that does not answer in time is taken for one that reads.
absl::StatusOr<SnapshotsInUse> FindSnapshotsInUse(const session::SessionRegistry& sessions,
                                                  absl::Duration answer_timeout = absl::Seconds(10));

// FAILED_PRECONDITION, with what to do, when one of them is in use.
absl::Status CheckNotInUse(const SnapshotsInUse& in_use, const std::string& id, const std::string& name);

}  // namespace still::snapshot
