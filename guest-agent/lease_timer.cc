#include "guest-agent/lease_timer.h"

#include <poll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/fd.h"
#include "base/waker.h"

namespace still::agent {
namespace {

class KernelLeaseTimer final : public LeaseTimer {
 public:
  KernelLeaseTimer(OwnedFd timer, Waker stop) : timer_(std::move(timer)), stop_(std::move(stop)) {}
  ~KernelLeaseTimer() override {
    stop_.Wake();
    if (thread_.joinable()) thread_.join();
  }

  void OnFire(std::function<void()> callback) override {
    STILL_CHECK(!thread_.joinable());
    callback_ = std::move(callback);
    thread_ = std::thread([this] { Run(); });
  }
  void Arm(absl::Duration deadline) override {
    // An all-zero time would disarm it instead of firing at once.
    Set(absl::ToTimespec(std::max(deadline, absl::Nanoseconds(1))));
  }
  void Disarm() override { Set(timespec{}); }

 private:
  void Set(timespec at) {
    itimerspec when{};
    when.it_value = at;
    STILL_CHECK(::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr) == 0);
  }

  void Run() {
    pollfd fds[2] = {{.fd = timer_.get(), .events = POLLIN, .revents = 0},
                     {.fd = stop_.fd(), .events = POLLIN, .revents = 0}};
    for (;;) {
      if (::poll(fds, 2, -1) < 0) {
        STILL_CHECK(errno == EINTR);
        continue;
      }
      if (fds[1].revents != 0) return;
      uint64_t expirations;
      // EAGAIN: re-armed or disarmed between poll and read.
      if (::read(timer_.get(), &expirations, sizeof expirations) == sizeof expirations) callback_();
    }
  }

  OwnedFd timer_;
  const Waker stop_;
  std::function<void()> callback_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LeaseTimer>> MakeKernelLeaseTimer() {
  OwnedFd timer(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!timer.valid()) return ErrnoStatus(errno, "timerfd_create");
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  return std::make_unique<KernelLeaseTimer>(std::move(timer), std::move(stop));
}

}  // namespace still::agent
