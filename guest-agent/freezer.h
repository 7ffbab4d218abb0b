// Freezer: the seam to the kernel's freezing. The real one is kernel_freezer.h; tests have a fake.
//
// Facts (Linux fs/ioctl.c, fs/super.c): FIFREEZE fails with EBUSY when the superblock is frozen already and with
// EOPNOTSUPP when its file system cannot freeze; FITHAW fails with EINVAL when it is not frozen. A freeze belongs to
// the superblock: it outlives the process that made it, and every mount of the superblock has it.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "guest-agent/mount_table.h"

namespace still::agent {

// One superblock, held open through one of its mounts so that what was frozen can be thawed whatever is mounted over it
// or lazily unmounted meanwhile. The calls block as long as the kernel does. Thread-safe.
class FileSystemHandle {
 public:
  virtual ~FileSystemHandle() = default;
  virtual absl::Status Sync() = 0;  // syncfs(2)
  virtual int Freeze() = 0;         // FIFREEZE: 0 or errno.
  virtual int Thaw() = 0;           // FITHAW: 0 or errno.
};

struct MountSurvey {
  // Our own table, and behind it what other mount namespaces have mounted besides.
  std::vector<MountEntry> mounts;
  // Superblock device -> the superblock devices that hold its data (a loop device's backing file, through any stack of
  // partitions and device-mapper targets). It must be frozen before them and thawed after them.
  std::map<DeviceId, std::set<DeviceId>> lies_on;
  // Superblock devices that must not be touched, and why: what they lie on is a network's, or does not answer.
  std::map<DeviceId, std::string> unanswering;
  std::string incomplete;  // What could not be looked at, and why; or empty.
  // What the paths of other namespaces begin with: open for as long as they are used.
  std::vector<OwnedFd> roots;
};

class Freezer {
 public:
  virtual ~Freezer() = default;
  virtual absl::StatusOr<MountSurvey> Survey() = 0;
  // NOT_FOUND when `path` cannot be opened or is not that mount (another one covers it). DEADLINE_EXCEEDED: the file
  // system does not answer.
  virtual absl::StatusOr<std::unique_ptr<FileSystemHandle>> Open(int mount_id, const std::string& path) = 0;
  // Makes the agent's own memory resident, so that it depends on no file system while frozen. Called before each
  // freeze.
  virtual void PinMemory() = 0;
};

}  // namespace still::agent
