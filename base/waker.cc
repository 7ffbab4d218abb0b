#include "base/waker.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>

namespace still {

absl::StatusOr<Waker> Waker::Create() {
  OwnedFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return ErrnoStatus(errno, "eventfd");
  return Waker(std::move(event));
}

void Waker::Wake() const {
  const uint64_t one = 1;
  // It can only fail when the counter is full, and then the waiter is awake anyway.
  (void)!::write(event_.get(), &one, sizeof one);
}

bool Waker::Clear() const {
  uint64_t count = 0;
  return ::read(event_.get(), &count, sizeof count) == sizeof count;
}

int PollTimeout(absl::Duration duration) {
  if (duration == absl::InfiniteDuration()) return -1;
  if (duration <= absl::ZeroDuration()) return 0;
  // Rounded up: a wait that ends before its time would be made again and again.
  const int64_t milliseconds = absl::ToInt64Milliseconds(duration + absl::Milliseconds(1) - absl::Nanoseconds(1));
  return static_cast<int>(std::min<int64_t>(milliseconds, std::numeric_limits<int>::max()));
}

}  // namespace still
