// libstill-vsock.so (device/): where it is, and how a hypervisor is started with it. A hypervisor needs it for the vsock
// device in user space, for snapshots in the background where userfaultfd(2) is refused, and for a guest with a network,
// which else reaches the host's loopback.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"

namespace still::session {

// Beside the running program or in ../lib/stillpoint; STILL_VSOCK_LIBRARY overrides both. FAILED_PRECONDITION when it
// is not there, or where LD_PRELOAD cannot name it.
absl::StatusOr<std::string> FindPreloadLibrary();

// The variable that loads `library` before what is already asked for by our own environment.
std::pair<std::string, std::string> PreloadVariable(const std::string& library);
// Adds to a process's environment what loads `library`, unless something does already.
void Preload(const std::string& library, std::vector<std::pair<std::string, std::string>>& environment);

// OK when the process has loaded it. FAILED_PRECONDITION: it runs without, as static and set-user-id programs do.
absl::Status CheckPreloaded(pid_t pid, const std::string& library);

// True when a hypervisor of ours may not call userfaultfd(2) but may open /dev/userfaultfd: then it must be started
// with the library to be snapshotted in the background.
bool UserfaultfdNeedsLibrary();

}  // namespace still::session
