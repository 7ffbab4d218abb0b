// Files of a snapshot without trusting the host's kernel with what a guest wrote: the kernel that reads the file system is
// an ordinary program of whoever asks (user-mode Linux, Debian: user-mode-linux), with still-file-reader in it. ext4, xfs
// and btrfs.
//
// The image is a file of nbdfuse's. <state>/mounts/read-XXXXXX holds it and the kernel's root directory for the
// length of one call; what a call that was killed left there goes with the next one.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "tools/still/context.h"
#include "tools/still/guest_tree.h"
#include "tools/still/image_mount.h"

namespace still::cli {

// As GuestTree::List. FAILED_PRECONDITION: what is needed for it is not installed.
absl::StatusOr<std::vector<TreeEntry>> ListAsUser(const Context& context, const ImageReference& image,
                                                  const std::string& path);

// As GuestTree::Copy.
absl::Status CopyAsUser(const Context& context, const ImageReference& image, const TreeCopy& copy);

}  // namespace still::cli
