// QemuRunState: who has stopped the vcpus, as far as events and our own pauses tell.
//
// Thread-safe: the QMP reader tells events, a capture its pause, and the session's keeper asks.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/qmp_client.h"

namespace still::session {

class QemuRunState {
 public:
  // In the QMP reader's thread, for every event.
  void Note(const QmpEvent& event);

  // A capture's pause, which nobody else may end as long as it is not over; `limit` is when it must be, so that one that
  // is forgotten heals too.
  void BeginPause(absl::Duration limit);
  void EndPause();

  // Which disk QEMU could not read or write, when that was why it stopped the vcpus; `disks` are in the order of their
  // nodes. Nothing is sent.
  std::optional<Standstill> HeldBy(const std::vector<DiskConfig>& disks);
  // Nothing when it runs, or in a capture's pause.
  absl::StatusOr<std::optional<Standstill>> Find(QmpClient& qmp, const std::vector<DiskConfig>& disks,
                                                 absl::Duration deadline);
  // `cont`, unless a capture's pause is on: FAILED_PRECONDITION.
  absl::Status Resume(QmpClient& qmp);

 private:
  bool PausedByCapture() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Held over a look and the `cont` that follows from it, so that no capture's `stop` comes in between.
  absl::Mutex resume_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  absl::Mutex mutex_;
  absl::Duration pause_end_ ABSL_GUARDED_BY(mutex_) = absl::ZeroDuration();  // Clock::Monotonic().
  // Of the last BLOCK_IO_ERROR that stopped it, until it runs again.
  bool failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::string failed_node_ ABSL_GUARDED_BY(mutex_);
  bool failed_write_ ABSL_GUARDED_BY(mutex_) = false;
  std::string failed_reason_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::session
