// CallWatch: notices that an RPC was cancelled (or its deadline passed, or its connection died) while its handler is
// blocked elsewhere, and optionally that a time limit of our own has passed. gRPC's synchronous API has no callback for
// it, so a thread asks every few milliseconds, only while the call lasts.
#pragma once

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace still::agent {

class CallWatch {
 public:
  struct Options {
    std::function<bool()> cancelled;
    std::function<void()> on_cancel;
    absl::Duration limit = absl::InfiniteDuration();  // From now.
    std::function<void()> on_limit = [] {};
  };
  // At most one of the two is called, once, on the watch's own thread.
  explicit CallWatch(Options options);
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;
  // After it nothing is called any more.
  ~CallWatch();

 private:
  void Run();

  const Options options_;
  absl::Mutex mutex_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace still::agent
