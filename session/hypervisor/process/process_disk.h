// ProcessDisks: makes the disk files of a stopped process readable as of that instant.
//
// Where the file system shares extents (FICLONE: btrfs, XFS) a pin is a clone beside the disk, without a name, made in
// the time that its dirty pages take to be written. Elsewhere the file is copied while the process stands still: the
// pause then lasts as long as the copy. Either is served by qemu-nbd afterwards, which also reads qcow2.
//
// Not thread-safe. The owner calls Prepare, Pin, Export, Release in this order; Cancel may come from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/vm_config.h"

namespace still::session {

// Empty when a clone of this file can be made; else why not.
std::string WhyNoReflink(const std::string& path);

// What the header of a disk file says of its content's size. FAILED_PRECONDITION for a qcow2 file that is not complete
// in itself (a backing file, an external data file): a copy of it alone would be worth nothing.
absl::StatusOr<uint64_t> ContentSize(const DiskConfig& disk, int fd);

class ProcessDisks {
 public:
  // `directory`: for sockets, and for copies where no clone can be made.
  ProcessDisks(std::vector<DiskConfig> disks, std::string directory)
      : configs_(std::move(disks)), directory_(std::move(directory)) {}

  // Opens everything and has dirty pages written back, so that little is left for the pause.
  absl::Status Prepare();
  // While the process is stopped, and not beyond `end` (monotonic). DEADLINE_EXCEEDED says how far a copy came.
  absl::Status Pin(absl::Duration end);
  absl::StatusOr<std::vector<PinnedDiskExport>> Export();
  // Idempotent.
  absl::Status Release();
  void Cancel() { cancelled_ = true; }

 private:
  struct Disk {
    DiskConfig config;
    OwnedFd source;
    OwnedFd pinned;  // Without a name: nothing is left behind, whatever happens.
    uint64_t file_size = 0;
    uint64_t content_size = 0;
    bool reflink = false;
    std::string socket;
    std::optional<ChildProcess> server;
  };

  absl::Status PrepareOne(Disk& disk);
  absl::Status Copy(Disk& disk, absl::Duration end);
  absl::Status Serve(Disk& disk);

  const std::vector<DiskConfig> configs_;
  const std::string directory_;
  std::vector<Disk> disks_;
  std::atomic<bool> cancelled_ = false;
};

}  // namespace still::session
