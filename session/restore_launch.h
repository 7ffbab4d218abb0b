// The launch of a restored session: from a VM that is ready to run to a machine of its own, which is offered to others.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"
#include "session/session.h"

namespace still::session {

// Of a session with saved memory, or with disks that another one booted too, once: runs the VM, waits for the agent, has
// it adopt its identity, which thaws, then brings the network up. An error has ended the session: a VM with frozen
// file systems or with its source's random numbers is never offered as running. How long it waits is in the session's
// configuration; `on_step` is told what it waits for.
absl::StatusOr<sessionpb::LaunchReport> LaunchRestored(Session& session,
                                                       const std::function<void(const std::string& step)>& on_step);

}  // namespace still::session
