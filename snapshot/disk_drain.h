// Reads a disk over NBD (network block device, the protocol of nbd.git/doc/proto.md) into an image of the repository:
// what a capture has pinned, or any other export. Zero ranges are not read (base:allocation); with a dirty bitmap, only
// what changed.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "store/image/image_writer.h"

namespace still::snapshot {

struct NbdSource {
  std::string socket;  // UNIX socket.
  std::string export_name;
  // Meta context that marks what changed since the parent image; empty: everything is read.
  std::string dirty_context;
  // A server that says nothing for so long while it owes an answer is given up.
  absl::Duration patience = absl::Seconds(60);
  // Called before so many bytes are asked for, from the thread that drains; it may block. Null: as fast as it goes.
  std::function<void(uint64_t)> pace = nullptr;
};

struct DrainedDisk {
  uint64_t bytes_read = 0;   // Over NBD.
  uint64_t bytes_clean = 0;  // Taken from the parent, because the bitmap says so.
};

// Blocks until the whole image is written (not finished). `progress` gets the bytes of the image that are done.
// UNAVAILABLE when the server goes away or cannot read, DEADLINE_EXCEEDED when it does not answer, ABORTED when it has lost
// what was pinned: another capture is needed.
absl::StatusOr<DrainedDisk> DrainDisk(const NbdSource& source, uint64_t size, store::ImageWriter& image,
                                      const std::function<void(uint64_t)>& progress);

// The size of an export, in bytes.
absl::StatusOr<uint64_t> NbdSize(const NbdSource& source);

}  // namespace still::snapshot
