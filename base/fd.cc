#include "base/fd.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace still {

void OwnedFd::Reset(int fd) {
  // The error of close() is dropped: after it the descriptor is gone either way (close(2), NOTES), and whoever needs
  // the data durable has called fsync before.
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

absl::StatusOr<OwnedFd> OwnedFd::Duplicate() const {
  int copy = ::fcntl(fd_, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) return ErrnoStatus(errno, "dup");
  return OwnedFd(copy);
}

}  // namespace still
