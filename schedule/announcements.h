// HookAnnouncer: carries alerts out of the house: to a command, a webhook, a mailbox. Each channel has a thread of its own,
// so that one that hangs holds up no other. It tries once; Alerts decides what is tried again. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "schedule/alerts.h"

namespace still::schedule {

struct AnnouncerOptions {
  std::string command;  // Run by /bin/sh; the event is in STILL_EVENT, _SCHEDULE, _SESSION, _MESSAGE, _JSON.
  std::string webhook;  // A URL that gets the event as JSON by POST.
  std::string mail_to;  // An address, or several with commas, that gets it by sendmail(8).
  std::string sendmail = "/usr/sbin/sendmail";
  // A URL that is called while everything is as promised, so that somebody else is alarmed when it is not called.
  std::string ping;
  absl::Duration ping_every = absl::Minutes(5);

  // What STILL_NOTIFY_COMMAND, STILL_WEBHOOK, STILL_MAIL_TO, STILL_SENDMAIL and STILL_PING say.
  static AnnouncerOptions FromEnvironment();
};

// {"event":"stale","about":"","schedule":"nightly","session":"web","time":"2026-...Z","host":"...","message":"..."}
std::string EventJson(const Event& event);
// With its headers, for `sendmail -t`. Nothing that a guest or a program said can add a header.
std::string EventMail(const Event& event, const std::string& to);

// Tells without a book: for whoever finds that there is none to be had. Waits until every channel took it or failed, and
// gives what came of it.
std::vector<Announcer::Outcome> TellOnce(const AnnouncerOptions& options, const Event& event);

class HookAnnouncer final : public Announcer {
 public:
  explicit HookAnnouncer(AnnouncerOptions options);
  // Ends what is under way; what waits has no outcome, and so is tried again by whoever comes next.
  ~HookAnnouncer() override;
  // Those that are configured; where none is, the journal.
  std::vector<std::string> Channels() const override;
  void Deliver(const Delivery& delivery) override;
  std::vector<Outcome> TakeOutcomes() override;
  // At most once in options.ping_every.
  void AllWell() override;

 private:
  class Channel;
  void Done(const Delivery& delivery, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status RunHook(const Event& event) const;
  absl::Status Post(const Event& event) const;
  absl::Status Mail(const Event& event) const;
  absl::Status Ping() const;

  const AnnouncerOptions options_;
  absl::Mutex mutex_;
  std::vector<Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  absl::Duration pinged_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();  // By the monotonic clock.
  std::vector<std::unique_ptr<Channel>> channels_;                             // Last: their threads use the rest.
  std::unique_ptr<Channel> ping_;
};

}  // namespace still::schedule
