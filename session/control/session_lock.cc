#include "session/control/session_lock.h"

#include <fcntl.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::session {
namespace {

constexpr char kLockFile[] = "lock";

struct flock WholeFile() {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

}  // namespace

absl::StatusOr<OwnedFd> LockSession(const std::string& directory) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(JoinPath(directory, kLockFile), O_RDWR | O_CREAT));
  struct flock lock = WholeFile();
  if (::fcntl(file.get(), F_OFD_SETLK, &lock) == 0) return file;
  if (errno == EAGAIN || errno == EACCES) {
    return absl::FailedPreconditionError(absl::StrCat("somebody works in ", directory));
  }
  return ErrnoStatus(errno, absl::StrCat("lock ", directory));
}

bool IsSessionLocked(const std::string& directory) {
  absl::StatusOr<OwnedFd> file = OpenFile(JoinPath(directory, kLockFile), O_RDONLY);
  if (!file.ok()) return false;
  struct flock lock = WholeFile();
  return ::fcntl(file->get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

}  // namespace still::session
