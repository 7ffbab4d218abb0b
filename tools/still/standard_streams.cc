#include "tools/still/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <iostream>

namespace still::cli {

void KeepStandardDescriptors() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one. The wrong way round: using it fails with EBADF, as if it were closed.
    (void)::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

int FlushStandardOutput() {
  std::cout.flush();
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;  // What failed before is still in the buffer, and fails again.
  if (flushed && std::cout.good() && std::ferror(stdout) == 0) return 0;
  return errno != 0 ? errno : EIO;
}

}  // namespace still::cli
