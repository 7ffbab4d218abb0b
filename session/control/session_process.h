// The still-session that works in a directory, also while it does not answer on its socket (not yet, or not any more).
#pragma once

#include <optional>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace still::session {

// A descriptor of the process (pidfd_open(2)), so that no signal goes to another one that got its number; readable once
// it has ended. nullopt: there is none. Reads the command lines of all processes.
std::optional<OwnedFd> FindSessionProcess(const std::string& directory);

// Ends it in order (SIGTERM), by force when that takes longer than half a minute, and waits until it is gone. NOT_FOUND:
// there is none.
absl::Status EndSessionProcess(const std::string& directory);

}  // namespace still::session
