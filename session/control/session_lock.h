// The lock on a session's directory: who works in it. Whoever makes a session takes it (SessionRegistry::Create), the
// still-session that is started for it inherits it, and the kernel releases it when the last of them has ended, however.
// So "does anybody live here?" asks a process and not a file that may be missing, or left behind.
//
// An open-file-description lock (fcntl(2), F_OFD_SETLK) on `<directory>/lock`: it is shared by descriptors that are
// inherited, can be asked without being taken, and goes along when the directory is renamed.
#pragma once

#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace still::session {

// Held while the descriptor, or a duplicate of it in any process, is open. Makes the file. FAILED_PRECONDITION: somebody
// has it.
absl::StatusOr<OwnedFd> LockSession(const std::string& directory);

// Takes nothing. False also when there is no such directory.
bool IsSessionLocked(const std::string& directory);

}  // namespace still::session
