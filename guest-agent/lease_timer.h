// LeaseTimer: the guest's own dead man's timer. It must work when everything else does not: its thread and its timer
// exist before anything is frozen, and it depends on no network, no host and no file.
#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "base/status.h"

namespace still::agent {

class LeaseTimer {
 public:
  virtual ~LeaseTimer() = default;
  // Called on the timer's thread whenever a deadline that was set has passed. Set once, before the first Arm.
  virtual void OnFire(std::function<void()> callback) = 0;
  // `deadline` as by Clock::Monotonic. Replaces an earlier one. Thread-safe; does not block.
  virtual void Arm(absl::Duration deadline) = 0;
  // A callback that is already running is not waited for.
  virtual void Disarm() = 0;
};

// On CLOCK_BOOTTIME, so that a guest that was suspended thaws when it wakes. The destructor joins the thread.
absl::StatusOr<std::unique_ptr<LeaseTimer>> MakeKernelLeaseTimer();

}  // namespace still::agent
