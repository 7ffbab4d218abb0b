// CallWithin: a look-up that the kernel may never answer (a path on a dead network file system, a device that hangs), on
// a thread of its own. Who asks waits for the limit at most; a thread that hangs is left behind, and while it does, the
// same question gets no second one.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::agent {

// The questions that have not been answered. Thread-safe.
class HangingCalls {
 public:
  // False when this question is being asked already, or too many are. A true is followed by one End.
  static bool Begin(const std::string& question);
  static void End(const std::string& question);
};

// `question` names what is asked and of what: "open /mnt/a". `call` must own what it uses, for it may outlive the caller.
// DEADLINE_EXCEEDED: no answer within `limit`, or none yet from an earlier call.
template <typename T>
absl::StatusOr<T> CallWithin(absl::Duration limit, const std::string& question,
                             std::function<absl::StatusOr<T>()> call) {
  // Shared by the caller and the thread, whichever ends last.
  struct Answer {
    absl::Mutex mutex;
    bool given ABSL_GUARDED_BY(mutex) = false;
    absl::StatusOr<T> value ABSL_GUARDED_BY(mutex) = absl::UnknownError("not asked");
  };
  const absl::Status none = absl::DeadlineExceededError(absl::StrCat(question, ": no answer"));
  if (!HangingCalls::Begin(question)) return none;
  auto answer = std::make_shared<Answer>();
  std::thread([answer, question, call = std::move(call)]() mutable {
    absl::StatusOr<T> value = call();
    call = nullptr;
    HangingCalls::End(question);
    absl::MutexLock lock(&answer->mutex);
    answer->value = std::move(value);
    answer->given = true;
  }).detach();
  absl::MutexLock lock(&answer->mutex);
  if (!answer->mutex.AwaitWithTimeout(absl::Condition(&answer->given), limit)) return none;
  return std::move(answer->value);
}

}  // namespace still::agent
