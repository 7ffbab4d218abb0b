// What systemd does for sessions: it keeps their processes apart from whoever started them, starts some with the host, and
// has their guests power off before the host does. Only for root's sessions, in the usual state directory, on a host
// that systemd runs; elsewhere there is nothing to do.
//
//   still-session@NAME.service   (packaging/systemd) starts an ended session; enabled: with the host.
//   still-session-NAME-ID.scope  of one that a command started: it survives the command's shell or service.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"
#include "session/control/session_registry.h"

namespace still::session {

// The signal by which systemd ends a session: its guest gets time to power off. One that the hypervisor and the disk
// servers, which are sent it too when a scope is stopped, do not end by (its default action is none).
int EndOfHostSignal();

// Words to put before still-session's command line, so that it runs in a scope of its own; empty: none can be had.
std::vector<std::string> ScopeCommand(const sessionpb::SessionConfig& config);

// From now on the session starts with the host. FAILED_PRECONDITION says what is missing.
absl::Status EnableAutostart(const SessionRegistry& sessions, const std::string& name);
// OK also when it did not, or never could.
absl::Status DisableAutostart(const SessionRegistry& sessions, const std::string& name);

}  // namespace still::session
