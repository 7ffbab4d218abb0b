#include "guest-agent/call_watch.h"

#include <utility>

#include "base/clock.h"

namespace still::agent {
namespace {

constexpr absl::Duration kInterval = absl::Milliseconds(10);

}  // namespace

CallWatch::CallWatch(Options options) : options_(std::move(options)), thread_([this] { Run(); }) {}

CallWatch::~CallWatch() {
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  thread_.join();
}

void CallWatch::Run() {
  const absl::Duration deadline = Clock::Real().Monotonic() + options_.limit;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&done_), kInterval)) return;
    }
    if (options_.cancelled()) return options_.on_cancel();
    if (Clock::Real().Monotonic() >= deadline) return options_.on_limit();
  }
}

}  // namespace still::agent
