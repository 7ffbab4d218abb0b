// The root file system of a stopped guest, for writing a few files into it. Paths are absolute, in the guest's eyes: its
// symbolic links never lead out of it.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "tools/still/guest_image/guest_disk.h"

namespace still::cli {

class GuestRoot {
 public:
  virtual ~GuestRoot() = default;
  virtual bool Exists(const std::string& path) = 0;
  virtual absl::StatusOr<std::string> Read(const std::string& path) = 0;
  // Directories above are made; what was there is replaced. Owned by root.
  virtual absl::Status Write(const std::string& path, absl::string_view content, mode_t mode) = 0;
  virtual absl::Status Link(const std::string& path, const std::string& target) = 0;
  virtual absl::Status MakeDirectory(const std::string& path) = 0;
  // Nothing is promised before it returns OK. Destroyed without it: what was written so far may stay.
  virtual absl::Status Commit() = 0;
};

// By the kernel, for root: mounted in a namespace of our own, which ends with us. Call EnterPrivateMountNamespace()
// first, and open the disk after it. NOT_FOUND: no file system of the disk looks like a root. FAILED_PRECONDITION: it
// was not shut down.
absl::StatusOr<std::unique_ptr<GuestRoot>> MountGuestRoot(const GuestDisk& disk);

// By debugfs(8), for everybody: ext2, ext3 and ext4. What was asked for is done by Commit(). Same errors.
absl::StatusOr<std::unique_ptr<GuestRoot>> OpenGuestRootWithDebugfs(const GuestDisk& disk);

// Does it look like a root that boots?
bool LooksLikeRoot(GuestRoot& root);
// For NOT_FOUND.
absl::Status NoRootFound(const GuestDisk& disk);

}  // namespace still::cli
