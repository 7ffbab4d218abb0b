#include "base/mount_namespace.h"

#include <sched.h>
#include <sys/mount.h>

#include <cerrno>

namespace still {

absl::Status EnterPrivateMountNamespace() {
  if (::unshare(CLONE_NEWNS) != 0) return ErrnoStatus(errno, "a mount namespace of our own");
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0) return absl::OkStatus();
  if (errno != EINVAL) return ErrnoStatus(errno, "private mounts");
  return absl::FailedPreconditionError(
      "private mounts: / is no mount point here, as in a chroot; bind the chroot's directory to itself (mount --bind) "
      "before entering it");
}

}  // namespace still
