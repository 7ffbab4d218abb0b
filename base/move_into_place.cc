#include "base/move_into_place.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/undo.h"

namespace still {
namespace {

std::string Operation(const std::string& from, const std::string& to) {
  return absl::StrCat("rename ", from, " to ", to);
}

// The kernel's answers where it, or the file system, does not know the flag.
bool NotSupported(int error_number) {
  return error_number == EINVAL || error_number == ENOSYS || error_number == EOPNOTSUPP;
}

// Takes the name first: whoever else wants it fails at that, and a rename over what is empty and ours is atomic.
absl::Status MoveOverEmpty(const std::string& from, const std::string& to, bool directory) {
  UndoStack undo;
  if (directory) {
    if (::mkdir(to.c_str(), 0700) != 0) return ErrnoStatus(errno, Operation(from, to));
    undo.Push("give the name back", [to] {
      return ::rmdir(to.c_str()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, absl::StrCat("rmdir ", to));
    });
  } else {
    absl::StatusOr<OwnedFd> placeholder = OpenFile(to, O_WRONLY | O_CREAT | O_EXCL);
    if (!placeholder.ok()) return Annotate(placeholder.status(), Operation(from, to));
    undo.Push("give the name back", [to] { return RemoveFile(to); });
  }
  if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(errno, Operation(from, to));
  undo.Disarm();
  return absl::OkStatus();
}

}  // namespace

absl::Status MoveIntoPlace(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return absl::OkStatus();
  if (!NotSupported(errno)) return ErrnoStatus(errno, Operation(from, to));
  return MoveWithoutFlag(from, to);
}

absl::Status MoveWithoutFlag(const std::string& from, const std::string& to) {
  struct stat status {};
  if (::lstat(from.c_str(), &status) != 0) return ErrnoStatus(errno, Operation(from, to));
  if (S_ISDIR(status.st_mode)) return MoveOverEmpty(from, to, /*directory=*/true);
  // link(2) refuses a name that is taken, too.
  if (::link(from.c_str(), to.c_str()) == 0) return RemoveFile(from);
  const bool no_links = NotSupported(errno) || errno == EPERM || errno == EMLINK;
  if (!no_links) return ErrnoStatus(errno, Operation(from, to));
  return MoveOverEmpty(from, to, /*directory=*/false);
}

}  // namespace still
