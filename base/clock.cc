#include "base/clock.h"

#include <time.h>

namespace still {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
  absl::Duration Monotonic() const override {
    timespec now{};
    ::clock_gettime(CLOCK_BOOTTIME, &now);
    return absl::Seconds(now.tv_sec) + absl::Nanoseconds(now.tv_nsec);
  }
  void Sleep(absl::Duration duration) override { absl::SleepFor(duration); }
};

}  // namespace

Clock& Clock::Real() {
  static RealClock* clock = new RealClock;
  return *clock;
}

}  // namespace still
