// How a session that has ended is started again: as a machine that was switched off. Its disks boot, wherever they came
// from: copies, files of the user's, or overlays that still lack a part of a snapshot.
#pragma once

#include <optional>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"

namespace still::session {

// What it is started with now, from what it was started with last (`config`) and what became of that (`last`; nullopt: an
// older version started it, which kept no sessions that never became ready). Looks at the files of lazily restored disks.
//
// Saved memory is not gone on with: its disks have moved on since. An identity that the guest has adopted is on its disks,
// and is not given to it again; one that it has not is, and its network stays down until then. FAILED_PRECONDITION for an
// adopted process, which is not ours to start.
absl::StatusOr<sessionpb::SessionConfig> ConfigToStartAgain(sessionpb::SessionConfig config,
                                                            const std::optional<sessionpb::SessionStart>& last);

// Whether a disk file (qcow2) still lies over something, by its header. NOT_FOUND, DATA_LOSS.
absl::StatusOr<bool> LacksSomething(const std::string& path);

// Whether the session's disks need what its disk server has, as far as they say so themselves. For one that has ended; of
// one that lives, ask it.
bool NeedsDiskServer(const sessionpb::SessionConfig& config);

}  // namespace still::session
