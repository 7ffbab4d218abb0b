// MemoryRelay: stands between QEMU's memory stream and whoever reads it, so that a reader that hangs, is slow to die or
// vanishes can never hold the guest.
//
// Why it must exist: while a background snapshot streams, a guest's write to a page that is not yet in the stream waits
// for it, device emulation included, so a stream that stands still stands the whole VM still, its QMP too. And QEMU
// before 8.0 never lifts the write protection of a background snapshot that failed or was cancelled
// (ram_write_tracking_stop is only called on success): the only safe end of one is its completion. So when the reader
// is lost, the relay reads on and throws away, and QEMU never learns of it.
//
// It takes what has gathered for a millisecond, no more often: QEMU flushes after every page of 4 KiB, and to be woken for
// each of them costs the two threads more than the page (docs/qemu.md).
//
// Data is moved with splice(2), from socket to pipe to socket, and not copied. One thread; the public calls are
// thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/pipe.h"
#include "base/status.h"
#include "base/waker.h"

namespace still::session {

class MemoryRelay {
 public:
  enum class WhenReaderIsLost {
    kReadOn,  // Throw the rest of the stream away: for a VM that runs on and waits for it.
    kClose,   // End the stream: for a VM that stands still, and is resumed as soon as the stream has failed.
  };
  struct Options {
    WhenReaderIsLost when_lost = WhenReaderIsLost::kReadOn;
    // A reader that takes nothing for so long, while there is something to take, is lost. Only time in which we
    // ourselves get the processor counts: on a host that starves everybody, nobody is to blame.
    absl::Duration stall_limit = absl::Seconds(1);
  };

  // `sink`: connected socket to the reader; shut down when the stream has ended or the reader is lost.
  static absl::StatusOr<std::unique_ptr<MemoryRelay>> Start(OwnedFd sink, Options options);
  // Ends the stream.
  ~MemoryRelay();

  // The end for QEMU to write into; call once.
  OwnedFd TakeSource() { return std::move(source_); }
  void SetStallLimit(absl::Duration limit);
  // The reader gets no more.
  void Cancel();
  // Bytes that the reader has been given.
  uint64_t bytes() const { return bytes_; }
  // Bytes that QEMU has got rid of.
  uint64_t bytes_read() const { return bytes_read_; }
  // OK as long as the reader gets everything. CANCELLED after Cancel(), DEADLINE_EXCEEDED when it stalled, ABORTED when
  // it vanished.
  absl::Status status() const;
  // Waits until the stream has ended on QEMU's side. False when that takes longer.
  bool WaitForEnd(absl::Duration timeout) const;

 private:
  MemoryRelay(Options options, Waker wake)
      : when_lost_(options.when_lost), wake_(std::move(wake)), stall_limit_(options.stall_limit) {}
  void Relay();
  void Pump();
  void ReadOn();
  absl::Status Move();
  absl::Status AwaitOne(int fd, short events, absl::Duration timeout);
  void LoseReader(const absl::Status& why);

  const WhenReaderIsLost when_lost_;
  OwnedFd source_;  // QEMU's end, until taken.
  OwnedFd stream_;  // Our end.
  OwnedFd sink_;
  Pipe pipe_;
  const Waker wake_;          // cancelled_ or stall_limit_ has changed.
  absl::Duration gathering_;  // How long to let it gather before we take it.
  uint64_t in_pipe_ = 0;      // Relay thread only, like the two below.
  bool stream_ended_ = false;
  int queued_ = 0;         // In the reader's socket, when it was last full.
  absl::Duration waited_;  // Since the reader last took something, or there was nothing to take.
  std::atomic<uint64_t> bytes_ = 0;
  std::atomic<uint64_t> bytes_read_ = 0;
  mutable absl::Mutex mutex_;
  absl::Duration stall_limit_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace still::session
