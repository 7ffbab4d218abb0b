// A pipe whose ends close themselves.
#pragma once

#include "base/fd.h"
#include "base/status.h"

namespace still {

struct Pipe {
  OwnedFd read_end;
  OwnedFd write_end;
};

// Close-on-exec. Both ends block: a program must find its standard streams as it expects them, so only an end that we
// keep is made non-blocking (SetNonBlocking).
absl::StatusOr<Pipe> MakePipe();

}  // namespace still
