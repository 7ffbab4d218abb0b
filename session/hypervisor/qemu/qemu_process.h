// QemuProcess: the hypervisor's process and the thread that keeps it.
//
// The keeper thread starts the process (so that the kernel's "end with your parent" holds for as long as this object
// lives: prctl(2) ties it to the thread), writes its console and its stderr into bounded logs, and reaps it. Nothing
// here knows QMP.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "base/waker.h"

namespace still::session {

class QemuProcess {
 public:
  struct Options {
    ProcessOptions process;  // stdin, stdout, stderr and end_with_parent are set here.
    OwnedFd console;         // Connected socket: what the guest's serial port sends.
    std::string console_log;
    std::string stderr_log;
  };
  static absl::StatusOr<std::unique_ptr<QemuProcess>> Start(Options options);
  // Ends the process by force.
  ~QemuProcess();

  pid_t pid() const { return pid_; }
  // SIGKILL unless the process ends by itself within `grace`. Thread-safe; returns at once. The shortest grace counts.
  void KillAfter(absl::Duration grace);
  // Thread-safe; callable again. DEADLINE_EXCEEDED while it runs.
  absl::StatusOr<ProcessExit> Wait(absl::Duration timeout) const;
  // The last lines (4 KiB) that it wrote to stderr.
  std::string stderr_tail() const;

 private:
  explicit QemuProcess(Waker wake) : wake_(std::move(wake)) {}
  void Keep(Options options);
  ProcessExit KeepUntilExit(ChildProcess& child, Options& options, int stderr_fd);

  struct Started {
    bool done = false;
    absl::Status status;
  };

  pid_t pid_ = -1;    // Set before Start returns.
  const Waker wake_;  // kill_at_ has changed.
  mutable absl::Mutex mutex_;
  Started started_ ABSL_GUARDED_BY(mutex_);
  absl::Duration kill_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();  // Monotonic clock.
  bool exited_ ABSL_GUARDED_BY(mutex_) = false;
  ProcessExit exit_ ABSL_GUARDED_BY(mutex_);
  std::string stderr_tail_ ABSL_GUARDED_BY(mutex_);
  std::thread keeper_;
};

}  // namespace still::session
