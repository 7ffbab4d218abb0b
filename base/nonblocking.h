// O_NONBLOCK of a descriptor that is open already.
#pragma once

#include "base/status.h"

namespace still {

absl::Status SetNonBlocking(int fd, bool non_blocking = true);

}  // namespace still
