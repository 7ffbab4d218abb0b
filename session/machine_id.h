// Which machine a session is, for the snapshots that are taken of it. A machine outlives its sessions: it may be stopped,
// removed and started again, or rolled back. Its name does not tell: other hosts use it too, and this one may use it
// again for something else.
#pragma once

#include <string>

#include "base/host_identity.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"

namespace still::session {

// Of a session that is started from its own disk files, or its kernel: the same whenever this host starts a session of
// this name from the same first disk. Never empty.
std::string StartedMachineId(const HostIdentity& host, const sessionpb::SessionConfig& config);

// What snapshots of this session carry. In a session of before there were machine ids it is worked out.
std::string MachineIdOf(const HostIdentity& host, const sessionpb::SessionConfig& config);

}  // namespace still::session
