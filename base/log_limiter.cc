#include "base/log_limiter.h"

#include <utility>

namespace still {
namespace {

constexpr absl::Duration kPeriod = absl::Minutes(1);

}  // namespace

std::optional<uint64_t> LogLimiter::Admit() {
  const absl::Duration now = clock_.Monotonic();
  absl::MutexLock lock(&mutex_);
  if (now < next_) {
    ++left_out_;
    return std::nullopt;
  }
  next_ = now + kPeriod;
  return std::exchange(left_out_, 0);
}

}  // namespace still
