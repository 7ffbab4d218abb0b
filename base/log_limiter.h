// LogLimiter: for log lines that somebody else can cause as often as he likes, such as a guest.
//
//   if (auto left_out = limiter.Admit()) LogWarning("turned away", {{"left_out", *left_out}});
#pragma once

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"

namespace still {

// One line a minute. Thread-safe.
class LogLimiter {
 public:
  explicit LogLimiter(Clock& clock = Clock::Real()) : clock_(clock) {}

  // Whether a line may be written now, and if so how many were left out since the last one.
  std::optional<uint64_t> Admit();

 private:
  Clock& clock_;
  absl::Mutex mutex_;
  absl::Duration next_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();  // Monotonic.
  uint64_t left_out_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace still
