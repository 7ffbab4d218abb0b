// HookAnnouncer: tells the world of an event: a line in the log, a command, a webhook. Delivery has a thread of its own;
// an event that cannot be delivered after some tries is logged. Thread-safe.
#pragma once

#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/bounded_queue.h"
#include "schedule/alerts.h"

namespace still::schedule {

struct AnnouncerOptions {
  std::string command;  // Run by /bin/sh; the event is in STILL_EVENT, _SCHEDULE, _SESSION, _MESSAGE, _JSON.
  std::string webhook;  // A URL that gets the event as JSON by POST.
  absl::Duration retry_after = absl::Seconds(5);  // Doubled each time.
};

// {"event":"stale","about":"","schedule":"nightly","session":"web","time":"2026-...Z","host":"...","message":"..."}
std::string EventJson(const Event& event);

class HookAnnouncer final : public Announcer {
 public:
  explicit HookAnnouncer(AnnouncerOptions options);
  // Tries once more to deliver what is waiting.
  ~HookAnnouncer() override;
  void Announce(const Event& event) override;

 private:
  // More events than this at once tell nothing more; the log has them all.
  static constexpr size_t kMostWaiting = 1000;
  void Deliver();
  absl::Status RunHook(const Event& event) const;
  absl::Status Post(const Event& event) const;
  void Try(const Event& event, absl::string_view how, absl::Status (HookAnnouncer::*deliver)(const Event&) const);
  bool WaitUnlessClosing(absl::Duration time) ABSL_LOCKS_EXCLUDED(mutex_);

  const AnnouncerOptions options_;
  absl::Mutex mutex_;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  size_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  BoundedQueue<Event> events_{kMostWaiting};
  std::thread thread_;
};

}  // namespace still::schedule
