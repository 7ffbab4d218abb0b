// ThawHooks: runs the hooks of a freeze that is over, on a thread of its own. The guest is thawed already; nobody waits
// for them but the next freeze, whose hooks must not meet them.
//
// Thread-safe.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "guest-agent/hooks.h"
#include "proto/guest.pb.h"

namespace still::agent {

class ThawHooks {
 public:
  explicit ThawHooks(Hooks& hooks) : hooks_(hooks) {}
  ThawHooks(const ThawHooks&) = delete;
  ThawHooks& operator=(const ThawHooks&) = delete;
  // Waits for those that run: each has a deadline.
  ~ThawHooks();

  // Hooks of one freeze, in the order of freezing: they run backwards, behind those of the freeze before. Does not block.
  void Start(const std::string& token, std::vector<std::string> paths, absl::Duration timeout);
  // Whether none is left to run, waiting for it up to `limit` while `cancelled` is false.
  bool WaitUntilIdle(absl::Duration limit, const std::function<bool()>& cancelled);
  // Fills in what QuiesceStatus tells of them.
  void Describe(pb::QuiesceStatusResponse& status);

 private:
  struct Batch {
    std::string token;
    std::vector<std::string> paths;  // In the order in which they run.
    absl::Duration timeout;
  };
  void RunAll();

  Hooks& hooks_;
  absl::Mutex mutex_;
  std::vector<Batch> waiting_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;  // thread_ runs, or is about to.
  // Of the last freeze that had any.
  std::string token_ ABSL_GUARDED_BY(mutex_);
  std::vector<pb::HookResult> results_ ABSL_GUARDED_BY(mutex_);
  size_t pending_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::agent
