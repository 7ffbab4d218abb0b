// MemoryEngine: a memory engine as still-session sees it: a process of its own (still-memory), and a watchdog here.
//
// The process answers the machine's writes. Were it a thread of still-session, whatever stalls or ends that one would hold the
// guest. Should the process end or hang while the guest waits for it, the watchdog gives the memory free: the guest runs on,
// and the capture has failed with ABORTED. One engine is for one capture or, with tracking, for as long as all succeed.
//
// Calls come from one thread, but Cancel() and bytes_written() from any. No call blocks for longer than its deadline.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "base/waker.h"
#include "session/memory/memory_saver.h"

namespace still::session {

// The program, as FindSibling finds it; STILL_MEMORY_PROGRAM names it elsewhere. NOT_FOUND.
absl::StatusOr<std::string> FindMemoryEngine();

enum class EngineRequest : uint32_t;

class MemoryEngine {
 public:
  struct Options {
    std::string program;
    // Of the process whose memory it is, and negotiated. Borrowed until the engine's end.
    int userfaultfd = -1;
    MemoryRange range;
    MemorySaver::Options saver;
  };

  static absl::StatusOr<std::unique_ptr<MemoryEngine>> Start(const Options& options);
  // The memory is free when it returns.
  ~MemoryEngine();

  absl::Status Arm(OwnedFd sink, absl::Duration deadline, const MemorySaver::Wish& wish);
  absl::Status Round(absl::Duration deadline);
  absl::Status Protect(absl::Duration deadline);
  absl::Status Save(absl::Time resumed, absl::Duration deadline);
  // Blocks until everything is in the sink; stalls are found by the engine itself.
  absl::Status Finish(const OwnedFd& device_state);

  // What has been saved is given up; calls fail soon with CANCELLED. Thread-safe, idempotent.
  void Cancel();
  // Ends the process; the memory is free when it returns. Idempotent.
  void End();
  // Whether the engine has failed or was cancelled, and why. Thread-safe.
  absl::Status status() const;
  uint64_t bytes_written() const;
  const MemoryFigures& figures() const { return figures_; }
  // For tests.
  pid_t pid() const { return pid_; }

 private:
  MemoryEngine(const Options& options, Waker failed, Waker stop);
  absl::Status Call(EngineRequest request, int64_t number, int fd, absl::Duration deadline);
  void Watch(ProcessOptions process);
  absl::Status WatchUntilEnd(ChildProcess& child);
  void Fail(const absl::Status& why);

  const WriteProtection protection_;
  const Waker failed_;  // Never cleared: status_ is an error.
  const Waker stop_;
  OwnedFd socket_;
  EngineBoard* board_ = nullptr;  // Mapped, shared with the process.
  pid_t pid_ = -1;
  MemoryFigures figures_;
  mutable absl::Mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::thread watchdog_;  // Starts the process, so that it ends with this object.
};

}  // namespace still::session
