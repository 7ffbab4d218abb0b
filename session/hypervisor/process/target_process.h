// TargetProcess: a running process that is not ours, stopped and continued by signals.
//
// It is held by a pidfd, so a signal never reaches a recycled pid. Thread-safe (no state but the descriptor).
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::session {

class TargetProcess {
 public:
  // NOT_FOUND: no such process. PERMISSION_DENIED: not ours to stop. FAILED_PRECONDITION: it is traced by a debugger,
  // which would see our stop as its own.
  static absl::StatusOr<TargetProcess> Open(pid_t pid);

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }
  bool gone() const;
  // argv, as far as the process lets it be read.
  std::vector<std::string> command() const;

  // True when no thread can run. UNAVAILABLE when the process is gone.
  absl::StatusOr<bool> IsStopped() const;
  // SIGSTOP, and the wait until every thread has stopped: one that is in an uninterruptible system call (state D, in
  // fsync for instance) goes on until that returns. DEADLINE_EXCEEDED names such a thread; the signal is then still
  // pending, so continue the process.
  absl::Status Stop(absl::Duration deadline) const;
  absl::Status Continue() const;

  // Whether it holds this file open. PERMISSION_DENIED when that cannot be seen.
  absl::StatusOr<bool> HasOpen(const std::string& path) const;

 private:
  TargetProcess(pid_t pid, OwnedFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  absl::Status Signal(int signal) const;
  absl::StatusOr<size_t> CountRunning(std::string& one_of_them) const;

  pid_t pid_;
  OwnedFd pidfd_;
};

}  // namespace still::session
