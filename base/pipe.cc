#include "base/pipe.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace still {

absl::StatusOr<Pipe> MakePipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  return Pipe{OwnedFd(ends[0]), OwnedFd(ends[1])};
}

}  // namespace still
