// HomeDirectory: the user's, also where the environment does not say it: in a service, or a bare shell.
#pragma once

#include <string>

#include "base/status.h"

namespace still {

// HOME, else what the user database says of the effective user; empty: there is none.
std::string HomeDirectory();

// Where sessions live if nobody says otherwise (docs/operations.md): STILL_STATE; /var/lib/stillpoint for root; for others
// stillpoint in XDG_STATE_HOME or in ~/.local/state. Empty: this user has no home directory. Never relative: it would be
// another one in each working directory.
std::string DefaultStateDirectory();

}  // namespace still
