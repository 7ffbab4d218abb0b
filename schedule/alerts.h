// Alerts: who is told what, once. A state of things is told when it begins, again each day while it lasts, and when it is
// over; what was told is remembered in the book, so that a restart neither repeats nor forgets it. Not thread-safe.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::schedule {

class RunBook;

struct Event {
  enum class Kind { kFailed, kStale, kRecovered };
  Kind kind = Kind::kFailed;
  std::string about;     // "failed", "stale": of a recovery, from what.
  std::string schedule;  // Empty: the daemon itself.
  std::string session;
  absl::Time at;
  std::string message;  // One sentence.
};
// "failed", "stale", "recovered".
std::string EventName(Event::Kind kind);

// Must not block: it is called between decisions.
class Announcer {
 public:
  virtual ~Announcer() = default;
  virtual void Announce(const Event& event) = 0;
};

class Alerts {
 public:
  Alerts(RunBook& book, Announcer& announcer) : book_(book), announcer_(announcer) {}
  // What was told before.
  absl::Status Load();
  // Kinds kFailed and kStale. Announces unless it was told within the last day.
  absl::Status Raise(const Event& event);
  // What was raised under this name is over, if it was. `message` tells how.
  absl::Status Clear(Event::Kind kind, const std::string& schedule, const std::string& session, absl::Time now,
                     const std::string& message);
  // Forgets, untold, what is about pairs that are no more.
  absl::Status KeepOnly(const std::function<bool(const std::string& schedule, const std::string& session)>& there);
  bool Raised(Event::Kind kind, const std::string& schedule, const std::string& session) const;

 private:
  RunBook& book_;
  Announcer& announcer_;
  std::map<std::string, absl::Time> told_;  // When last.
};

// How old the newest good snapshot of a session is, by a clock that may be set.
class Freshness {
 public:
  // A good snapshot of that time is there. Also: from then on the age counts, because there was nothing to do before.
  void Good(absl::Time point);
  // The clock was set back: what seems to come from the future counts as of now.
  void NoLaterThan(absl::Time now);
  absl::Duration Age(absl::Time now) const { return now - newest_; }
  absl::Time newest() const { return newest_; }

 private:
  absl::Time newest_ = absl::InfinitePast();
};

}  // namespace still::schedule
