// The still-session that works in a directory, also while it does not answer on its socket (not yet, or not any more).
#pragma once

#include <optional>
#include <string>

#include "base/fd.h"

namespace still::session {

// A descriptor of the process (pidfd_open(2)), so that no signal goes to another one that got its number; readable once
// it has ended. nullopt: there is none. Reads the command lines of all processes.
std::optional<OwnedFd> FindSessionProcess(const std::string& directory);

}  // namespace still::session
