// SpillingPipe: a byte queue between a reader that must never wait and a consumer that may be slow. It holds up to
// `memory_limit` bytes in memory and the rest in an unlinked file.
//
// A hypervisor that streams memory makes the guest wait for every page that is not yet taken, so the reader takes them
// at full speed, whatever hashing, compression and the repository are doing. One writer thread, one reader thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::snapshot {

class SpillingPipe {
 public:
  struct Options {
    size_t memory_limit = 64 << 20;
    uint64_t spill_limit =
        uint64_t{1} << 40;  // Bytes waiting in the file; beyond it Write fails with RESOURCE_EXHAUSTED.
    // Until LetGo() the consumer gets nothing while less than this waits; 0: it is never held.
    size_t hold_limit = 0;
    std::string spill_directory;  // On disk, not tmpfs: it may take as much as the guest has memory.
  };
  explicit SpillingPipe(Options options) : options_(std::move(options)) {}

  // Never waits for the reader. RESOURCE_EXHAUSTED when neither memory nor the file takes it; the pipe is then broken.
  absl::Status Write(std::string data);
  // No more writes. With an error, the reader gets it once everything before it has been read.
  void Close(absl::Status status);

  // Ends the hold. Thread-safe, idempotent.
  void LetGo();

  // Blocks until there is something, then returns it in the pieces in which it was written; empty at the end.
  absl::StatusOr<std::string> Read();
  // The reader gives up: later writes are dropped, so that the writer can drain its source to the end.
  void Abandon();

  uint64_t spilled_bytes() const;  // In all, so far.

 private:
  // A piece is in memory or at a place in the file; pieces leave in the order they came.
  struct Piece {
    std::string data;
    uint64_t file_offset = 0;
    uint64_t spilled = 0;  // Length in the file; 0: in memory.
  };
  absl::Status Spill(Piece& piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool ReadableLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (closed_) return true;
    return !pieces_.empty() && (!held_ || in_memory_ + in_file_ >= options_.hold_limit);
  }

  const Options options_;
  mutable absl::Mutex mutex_;
  std::deque<Piece> pieces_ ABSL_GUARDED_BY(mutex_);
  size_t in_memory_ ABSL_GUARDED_BY(mutex_) = 0;
  OwnedFd file_ ABSL_GUARDED_BY(mutex_);
  uint64_t file_end_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t in_file_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t spilled_ ABSL_GUARDED_BY(mutex_) = 0;
  bool held_ ABSL_GUARDED_BY(mutex_) = true;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::snapshot
