// Sink: the engine's end of a page stream. A reader that takes nothing for the stall limit is given up.
//
// Only time in which this process gets the processor counts: on a host that starves everybody, nobody is to blame. Not
// thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "session/memory/page_stream.h"

namespace still::session {

class Sink {
 public:
  // `socket`: connected. `cancelled` is looked at while it waits: CANCELLED.
  static absl::StatusOr<Sink> Create(OwnedFd socket, absl::Duration stall_limit, const std::atomic<bool>& cancelled);

  absl::Status WriteHeader(uint64_t memory_bytes, bool increment);
  // DEADLINE_EXCEEDED: the reader stalls. ABORTED: it is gone.
  absl::Status WriteRecord(PageRecord kind, uint64_t offset, const char* bytes, uint32_t size);
  uint64_t bytes() const { return bytes_; }

 private:
  Sink(OwnedFd socket, absl::Duration stall_limit, const std::atomic<bool>& cancelled)
      : socket_(std::move(socket)), stall_limit_(stall_limit), cancelled_(&cancelled) {}
  absl::Status Write(const void* head, size_t head_size, const char* bytes, size_t size);
  absl::Status AwaitReader(absl::Duration& waited);

  OwnedFd socket_;
  absl::Duration stall_limit_;
  const std::atomic<bool>* cancelled_;
  int queued_ = 0;  // In the socket, when it was last full.
  uint64_t bytes_ = 0;
};

}  // namespace still::session
