// A mount namespace of one's own: what is mounted in it is seen by nobody else and goes with its last process.
#pragma once

#include "base/status.h"

namespace still {

// For this thread, and for threads and processes that it starts from here on. Needs CAP_SYS_ADMIN (PERMISSION_DENIED).
// FAILED_PRECONDITION in a chroot whose root is no mount point: there mounts cannot be kept from spreading
// (mount_namespaces(7), "Shared subtrees").
absl::Status EnterPrivateMountNamespace();

}  // namespace still
