// Alerts: who is told what, and whether the message arrived. A state of things is told when it begins, again each day
// while it lasts, and when it is over. It counts as told on a channel when the channel took it; until then it is tried
// again, with growing pauses, for as long as it is true. All of it is in the book, so that a restart neither repeats nor
// forgets; when the book cannot be written, it is told all the same. Not thread-safe.
//
//   alerts.Raise({.kind = Event::Kind::kStale, ...});     // Each turn while it is so.
//   alerts.Clear(Event::Kind::kStale, ...);               // It was mended, and that is proven.
//   STILL_RETURN_IF_ERROR(alerts.Work(now));              // Tells what is due. Never waits.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::schedule {

class RunBook;

struct Event {
  enum class Kind {
    kFailed,      // A run failed.
    kStale,       // The newest good snapshot is too old.
    kRecovered,   // What `about` says is over.
    kScheduler,   // The schedules are not worked on.
    kLevel,       // Snapshots do not keep the promised level.
    kUnreadable,  // A session's directory cannot be read.
    kUnusable,    // A schedule cannot be read.
    kUnmatched,   // A name or pattern of a schedule fits no session.
    kGone,        // A machine that a pattern fitted is there no more.
    kEnded,       // A machine ended, and nobody stopped it.
    kTest,        // Nothing: somebody wants to see whether alerts arrive. Never raised.
    kHeld,        // A machine stands still, because its disk cannot be read or written.
    kRestarting,  // A machine is reset again and again.
    kLost,        // A schedule was at work here, and the book, which is new, does not have it.
  };
  Kind kind = Kind::kFailed;
  std::string about;     // Of a recovery: the name of what is over.
  std::string schedule;  // Empty: the daemon itself.
  std::string session;   // Or the pattern that fits none.
  absl::Time at;
  std::string message;  // One sentence.
};
// "failed", "stale", "recovered", ...
std::string EventName(Event::Kind kind);

// How alerts leave the house. None of it may block: it is called between decisions.
class Announcer {
 public:
  struct Delivery {
    std::string key;  // Of the alert.
    std::string channel;
    Event event;
  };
  struct Outcome {
    std::string key;
    std::string channel;
    bool recovery = false;  // Of a kRecovered.
    bool delivered = false;
  };
  virtual ~Announcer() = default;
  // At least one.
  virtual std::vector<std::string> Channels() const = 0;
  // Begins to deliver; what came of it is among a later TakeOutcomes().
  virtual void Deliver(const Delivery& delivery) = 0;
  virtual std::vector<Outcome> TakeOutcomes() = 0;
  // Everything is as promised: for receivers that are alarmed when they are not called.
  virtual void AllWell() = 0;
};

// One alert, as the book keeps it.
struct Alert {
  struct Channel {
    std::optional<absl::Time> told;  // When last.
    absl::Time next;                 // Not tried before.
    int tries = 0;                   // Since it was told.
    bool pending = false;            // Being delivered. Not kept.
  };
  Event event;  // `at`: since when.
  std::optional<absl::Time> over;
  std::string how;     // It came to be over.
  bool quiet = false;  // It is not true just now, but nothing has proven that it is mended.
  std::map<std::string, Channel> channels;
  // Not kept: what the book has of this alert, and whether that is all of it.
  std::string row;
  bool saved = false;

  // Somebody was told of it.
  bool delivered() const;
  bool pending() const;
};

// Those in Remembered(); what cannot be read is left out.
std::map<std::string, Alert> ParseAlerts(const std::map<std::string, std::string>& remembered);

class Alerts {
 public:
  Alerts(RunBook& book, Announcer& announcer) : book_(book), announcer_(announcer) {}
  // What was told before.
  absl::Status Load();
  void Raise(const Event& event);
  // What was raised under this name is mended, if it was. `message` tells how.
  void Clear(Event::Kind kind, const std::string& schedule, const std::string& session, absl::Time now,
             const std::string& message);
  // It is not true any more, but not by being mended: somebody changed the rules. Nothing is told until it is cleared.
  void Quiet(Event::Kind kind, const std::string& schedule, const std::string& session);
  // Forgets, untold, what is not wanted any more.
  void KeepOnly(const std::function<bool(const Event& event)>& wanted);
  bool Raised(Event::Kind kind, const std::string& schedule, const std::string& session) const;
  // Since when, if it is.
  std::optional<absl::Time> RaisedSince(Event::Kind kind, const std::string& schedule,
                                        const std::string& session) const;
  // Whether somebody was told of it.
  bool Delivered(Event::Kind kind, const std::string& schedule, const std::string& session) const;

  // Takes over what another process has made of the book meanwhile: alerts that it began, told, or told to be over and forgot.
  // What this one has not written down yet, or is just delivering, stays.
  absl::Status Adopt();
  // Writes down what is not in the book yet; Work() does.
  absl::Status Keep();

  // Takes in what came of deliveries and begins those that are due. An error: the book does not take it; nothing is lost
  // as long as this process lives.
  absl::Status Work(absl::Time now);
  // When Work() has something to do, at the latest.
  absl::Time Next(absl::Time now) const;
  // Something is being delivered just now.
  bool Pending() const;
  // By key.
  const std::map<std::string, Alert>& all() const { return alerts_; }
  // Of all of them, those that are true now.
  bool AnyTrue() const;

 private:
  Alert* Find(Event::Kind kind, const std::string& schedule, const std::string& session);
  const Alert* Find(Event::Kind kind, const std::string& schedule, const std::string& session) const;
  void TakeOutcomes(absl::Time now);
  void Tell(const std::string& key, Alert& alert, const std::vector<std::string>& there, absl::Time now);

  RunBook& book_;
  Announcer& announcer_;
  std::map<std::string, Alert> alerts_;
  std::map<std::string, bool> forgotten_;  // Keys whose rows are still to go.
};

}  // namespace still::schedule
