// InBackground: something that may hang for ever (a hard NFS mount without its server), done in a thread of its own, so that
// whoever wants its result goes on without it.
//
//   InBackground<Opened> opening;
//   std::optional<absl::StatusOr<Opened>> opened = opening.Try([options] { return Open(options); }, absl::Seconds(2));
//   if (!opened.has_value()) return ...;  // It is still under way; the next Try() waits for the same.
//
// For one thread at a time. Nothing ends a system call that hangs: what `work` uses must be its own, because it may outlive
// everything else.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::schedule {

template <typename Result>
class InBackground {
 public:
  InBackground() = default;
  InBackground(const InBackground&) = delete;
  // Waits a moment for what is under way, and leaves it behind then.
  ~InBackground() {
    if (thread_.joinable() && !Wait(kLongestEnd)) thread_.detach();
    if (thread_.joinable()) thread_.join();
  }

  // Begins `work` unless it is under way, and waits for it this long. Each result is given once; nullopt: there is none yet.
  std::optional<absl::StatusOr<Result>> Try(std::function<absl::StatusOr<Result>()> work, absl::Duration wait) {
    if (!thread_.joinable()) {
      state_ = std::make_shared<State>();
      thread_ = std::thread([state = state_, work = std::move(work)] {
        absl::StatusOr<Result> result = work();
        absl::MutexLock lock(&state->mutex);
        state->result = std::move(result);
      });
    }
    if (!Wait(wait)) return std::nullopt;
    thread_.join();
    absl::MutexLock lock(&state_->mutex);
    return std::exchange(state_->result, std::nullopt);
  }

 private:
  static constexpr absl::Duration kLongestEnd = absl::Seconds(5);
  // Shared with the thread, which may be left behind.
  struct State {
    absl::Mutex mutex;
    std::optional<absl::StatusOr<Result>> result ABSL_GUARDED_BY(mutex);
    bool Done() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return result.has_value(); }
  };
  // Whether it is done.
  bool Wait(absl::Duration time) {
    absl::MutexLock lock(&state_->mutex);
    return state_->mutex.AwaitWithTimeout(absl::Condition(state_.get(), &State::Done), time);
  }

  std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace still::schedule
