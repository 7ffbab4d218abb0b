// A stopped disk image: locked against every QEMU, seen as raw bytes whatever its format, and searched for file systems.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"

namespace still::cli {

struct GuestFileSystem {
  std::string type;  // ext2, ext3, ext4, xfs or btrfs: those that can be written here.
  uint64_t offset = 0;
  uint64_t size = 0;  // Bytes.
};

class GuestDisk {
 public:
  // `format`: raw or qcow2. FAILED_PRECONDITION: something uses the image.
  static absl::StatusOr<std::unique_ptr<GuestDisk>> Open(const std::string& path, const std::string& format);
  // Best effort at what Close() does.
  ~GuestDisk();
  GuestDisk(const GuestDisk&) = delete;
  GuestDisk& operator=(const GuestDisk&) = delete;

  // A file with the disk's content; writes to it are writes to the disk.
  const std::string& raw_path() const { return raw_path_; }
  // Of the whole disk, or of its partitions in their order.
  absl::StatusOr<std::vector<GuestFileSystem>> FileSystems() const;
  // Everything that was written is in the image when it returns.
  absl::Status Close();

 private:
  GuestDisk() = default;
  absl::Status LockRaw();
  absl::Status ServeQcow2();
  absl::Status WaitUntilServed();

  std::string path_;
  std::string raw_path_;
  OwnedFd image_;          // Raw: holds the lock.
  std::string directory_;  // qcow2: private, with the file that is served and the server's log.
  std::optional<ChildProcess> server_;
};

// OK, or FAILED_PRECONDITION when an ext file system was not unmounted. (The journals of the others are looked at by
// the kernel when it mounts them.)
absl::Status CheckExtClean(const std::string& raw_path, const GuestFileSystem& file_system);

}  // namespace still::cli
