// Passphrases between processes: by descriptor, in memory only; never in an environment, which every child inherits and
// which its user can read from /proc for as long as the process lives, and never on a command line.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "base/status.h"

namespace still {

// Takes a variable out of the environment and gives its value, or "". What /proc/PID/environ shows of it is overwritten.
// To be called when a program begins, before it has threads or children.
std::string TakeSecretVariable(const char* name);

// Memory with the secret in it, close-on-exec, for a child to inherit.
absl::StatusOr<OwnedFd> MakeSecretFd(absl::string_view secret);

// Reads it; a line's end after it is taken off. A file is read from its beginning, whatever others have read of it through
// the same descriptor: a program that is started again is given the same, and several share one. At most 64 KiB.
absl::StatusOr<std::string> ReadSecretFd(int fd);

}  // namespace still
