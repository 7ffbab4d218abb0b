// Takes QEMU's migration stream apart while it flows: the pages of the main memory block go out with their addresses,
// everything else is kept, in a form that QEMU loads back over a memory file (VmConfig::incoming).
//
// The format is QEMU's stream version 3 as of 7.2 (docs/devel/migration.rst, migration/savevm.c and ram.c name the
// section types and page flags), as `background-snapshot` and plain `migrate` write it: one "ram" section in parts,
// then the devices. Compressed, multifd and xbzrle streams are refused, they are never asked for.
//
// A stream with x-ignore-shared has no page of the main block, and two marks of that capability: a subsection of the
// configuration, and an address behind each block's size. They are left out of what is kept, so that it is the same as of any
// other stream.
//
// The stream comes out of a process that a hostile guest may have taken over: every length, address and count is
// checked against the bounds below, and a stream that breaks them is DATA_LOSS, never an overrun or an endless loop.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "session/hypervisor/memory_stream_receiver.h"

namespace still::session {

struct MigrationStreamOptions {
  // The block whose pages are taken out.
  std::string ram_block = "pc.ram";
  // What the machine was given; a stream that claims another size is refused. 0: not known, any up to the limit below.
  uint64_t memory_bytes = 0;
  uint64_t max_memory_bytes = uint64_t{4} << 40;  // Costs one bit a page in here.
  // All that is not main memory: 400 KB in our machines, 16 MiB more with a VGA card.
  uint64_t max_device_state_bytes = 256u << 20;
  // The stream is read in pieces of up to this size; at least 8 KiB.
  size_t buffer_bytes = 4u << 20;
};

struct MigrationStreamReport {
  uint64_t stream_bytes = 0;
  uint64_t memory_bytes = 0;
  uint64_t pages = 0;       // With content, repeated ones counted again.
  uint64_t zero_pages = 0;  // Likewise.
  uint64_t repeated_pages = 0;
  uint64_t device_state_bytes = 0;
};

// Where the stream comes from.
class MigrationStreamSource {
 public:
  virtual ~MigrationStreamSource() = default;
  // Up to `size` bytes into `out`, blocking; 0 at the end.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size) = 0;
};

// Reads until the end of the stream. An error of the receiver ends it and is returned as it is. DATA_LOSS: broken or
// cut short. UNIMPLEMENTED: a feature that we never ask for.
absl::StatusOr<MigrationStreamReport> SplitMigrationStream(MigrationStreamSource& source,
                                                           const MigrationStreamOptions& options,
                                                           MemoryStreamReceiver& receiver);
// From a pipe, socket or file.
absl::StatusOr<MigrationStreamReport> SplitMigrationStream(int fd, const MigrationStreamOptions& options,
                                                           MemoryStreamReceiver& receiver);

}  // namespace still::session
