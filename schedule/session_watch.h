// SessionWatch: how sessions are, as they said when they were asked last. They are asked in a thread of its own: one
// that hangs must not hold up the schedules, nor whoever looks at them.
//
//   SessionWatch watch(registry);
//   watch.AskOnce();                      // A command, which waits for the answers.
//   watch.Start(absl::Seconds(10));       // A daemon: every ten seconds from now on.
//   std::map<std::string, SessionWatch::Told> told = watch.LastTold();   // Never waits for a session.
//
// Thread-safe, but for Start().
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "session/control/session_registry.h"

namespace still::schedule {

class SessionWatch {
 public:
  explicit SessionWatch(session::SessionRegistry registry) : registry_(std::move(registry)) {}
  ~SessionWatch();
  SessionWatch(const SessionWatch&) = delete;
  SessionWatch& operator=(const SessionWatch&) = delete;

  void AskOnce() ABSL_LOCKS_EXCLUDED(mutex_);
  void Start(absl::Duration every);
  struct Told {
    std::string held;     // Why it is: its disk cannot be read or written. Else empty.
    uint32_t resets = 0;  // Of its guest, since it started.
  };
  // Of each session that has answered.
  std::map<std::string, Told> LastTold() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const session::SessionRegistry registry_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Told> told_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace still::schedule
