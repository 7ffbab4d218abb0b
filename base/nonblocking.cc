#include "base/nonblocking.h"

#include <fcntl.h>

#include <cerrno>

namespace still {

absl::Status SetNonBlocking(int fd, bool non_blocking) {
  int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return ErrnoStatus(errno, "fcntl F_GETFL");
  flags = non_blocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
  if (::fcntl(fd, F_SETFL, flags) != 0) return ErrnoStatus(errno, "fcntl F_SETFL");
  return absl::OkStatus();
}

}  // namespace still
