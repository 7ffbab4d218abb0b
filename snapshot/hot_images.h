// HotImages: memory images of snapshots, ready to be mapped, one copy for all sessions of this user on this host.
//
//   STILL_ASSIGN_OR_RETURN(HotImage image, HotImages(HotImageOptions::FromEnvironment()).Get(key, size, fill));
//
// An image is a file on a tmpfs: a private mapping of it can be write-protected, so a session restored on it can be
// snapshotted again, which a file on a disk does not allow (docs/qemu.md). Sessions map it privately and never change it.
//
// There is no daemon and no list: the directory is the truth.
//   KEY.ram    complete. Whoever uses it holds a shared flock(2) on it, through the very descriptor that the hypervisor
//              inherits: it is released by the kernel when the last of them is gone, however it went.
//   KEY.part   being filled by the process that holds it locked; without a lock, what a dead one has left.
//   lock       held while room is made; for milliseconds.
// What is not in use is evicted, the longest unused first, when another image needs the room.
//
// Thread-safe and safe between processes (no state).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::snapshot {

struct HotImageOptions {
  std::string directory;
  // Of all images together, by their full size: a mapping may fill what is still a hole.
  uint64_t limit_bytes = 0;
  // For another process that is filling the same image.
  absl::Duration wait = absl::Minutes(10);

  // STILL_HOT_DIRECTORY (default: /dev/shm/stillpoint-UID), STILL_HOT_LIMIT in MiB (default: half of the host's memory).
  static HotImageOptions FromEnvironment();
};

struct HotImage {
  OwnedFd fd;           // Holds the lock, with all its duplicates. To be mapped privately.
  bool filled = false;  // By this call; else it was there.
};

struct HotImageInfo {
  std::string key;
  uint64_t size = 0;
  uint64_t resident = 0;  // Bytes of memory that it takes.
  absl::Time used;        // When a restore asked for it last.
  bool in_use = false;
};

class HotImages {
 public:
  explicit HotImages(HotImageOptions options) : options_(std::move(options)) {}

  // The image `key`, made by `fill` (into a file of `size` zero bytes) unless it is there. `key`: [a-z0-9-]{1,128}, the
  // same for the same content only. RESOURCE_EXHAUSTED: no room that could be made. FAILED_PRECONDITION: no tmpfs, or
  // the directory is not this user's alone. DEADLINE_EXCEEDED: another process fills it for longer than `wait`.
  absl::StatusOr<HotImage> Get(const std::string& key, uint64_t size,
                               const std::function<absl::Status(int fd)>& fill) const;
  // What there is, the longest unused first.
  absl::StatusOr<std::vector<HotImageInfo>> List() const;
  // Drops every image that nobody uses; gives how many bytes of memory that were.
  absl::StatusOr<uint64_t> DropUnused() const;

  const HotImageOptions& options() const { return options_; }

 private:
  absl::Status PrepareDirectory() const;
  absl::StatusOr<OwnedFd> Open(const std::string& key, uint64_t size) const;
  absl::StatusOr<OwnedFd> BeginPart(const std::string& key, uint64_t size) const;
  absl::Status WaitForPart(const std::string& key) const;
  absl::Status MakeRoom(uint64_t size) const;
  std::string PathOf(const std::string& key, const char* suffix) const;

  const HotImageOptions options_;
};

}  // namespace still::snapshot
