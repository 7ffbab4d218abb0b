// Lazily restored disks: a local overlay (qcow2) over an export of the repository, instead of a copy of the disk. What it
// takes to start does not depend on the disk's size. Who serves, holds and completes them: session/vm_keeper.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"

namespace still::snapshot {

struct LazyDiskOptions {
  // The program that serves a snapshot, without the snapshot's id, which is added. Empty: nothing is restored lazily.
  std::vector<std::string> server_command;
  std::string passphrase;  // Empty: it needs none.
  bool hydrate = true;     // Complete the disks in the background, once the session is ready.
  uint64_t hydrate_bytes_per_second = 0;
};

// Makes the overlay `path` of the image and describes it in `file`.
absl::Status MakeLazyDisk(const manifestpb::Image& image, const std::string& path, sessionpb::DiskFile& file);

// Fills config.disk_server, if any of its disks needs one.
void DescribeDiskServer(const LazyDiskOptions& options, const std::string& snapshot_id,
                        sessionpb::SessionConfig& config);

// What the server's passphrase is passed in, to any number of sessions; invalid when it needs none.
absl::StatusOr<OwnedFd> DiskSecret(const LazyDiskOptions& options);

}  // namespace still::snapshot
