// Clock: the seam for time. Logic that is tested takes a Clock&; nothing else reads the time of day.
//
// Now() is the wall clock (for people and manifests); Monotonic() only ever moves forward and measures windows and
// deadlines. It counts while the host is suspended (CLOCK_BOOTTIME), so that a lease expires over a suspend too.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace still {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;
  // Since an arbitrary origin, the same for all processes of one boot.
  virtual absl::Duration Monotonic() const = 0;
  virtual void Sleep(absl::Duration duration) = 0;

  // The machine's clock. Thread-safe, never destroyed.
  static Clock& Real();
};

}  // namespace still
