// Scheduler: decides what runs when, and sees to it that nothing that was planned goes by without a row and no machine
// stays without a good snapshot without somebody being told. It does none of it itself: the edges below do.
//
//   Scheduler scheduler(book, host, announcer, clock, {});
//   STILL_RETURN_IF_ERROR(scheduler.Recover());
//   for (;;) { STILL_ASSIGN_OR_RETURN(absl::Duration wait, scheduler.Step()); ...wait, at most that long... }
//
// Invariants: at most one run of a session at a time, over all schedules. Every occurrence is counted by exactly one
// row, unless the clock was set back; runs by hand and second tries count none. What is in memory only can be lost at any instant: rows say
// how far each schedule got. Not thread-safe.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "schedule/alerts.h"
#include "schedule/schedule.h"
#include "store/book/rows.h"

namespace still::schedule {

// Where schedules and runs are written down (stored_book.h). Every change is durable when it returns.
class RunBook {
 public:
  virtual ~RunBook() = default;
  virtual absl::StatusOr<std::vector<Schedule>> Schedules() = 0;
  virtual absl::StatusOr<int64_t> AddRun(const store::RunRow& run) = 0;
  virtual absl::Status UpdateRun(const store::RunRow& run) = 0;
  virtual absl::StatusOr<std::optional<store::RunRow>> FindRun(int64_t id) = 0;
  virtual absl::StatusOr<std::vector<store::RunRow>> Running() = 0;
  virtual absl::StatusOr<std::vector<store::RunCursor>> Cursors() = 0;
  virtual absl::Status Remember(const std::string& key, const std::string& value) = 0;
  virtual absl::StatusOr<std::map<std::string, std::string>> Remembered() = 0;
};

struct SessionState {
  std::string name;
  bool running = false;  // Else it was ended on purpose: there is nothing new to take a snapshot of.
};

// What runs are done to.
class Host {
 public:
  virtual ~Host() = default;
  virtual absl::StatusOr<std::vector<SessionState>> Sessions() = 0;
  // The point of the newest snapshot of this session that can be restored.
  virtual absl::StatusOr<std::optional<absl::Time>> NewestGood(const std::string& session) = 0;
  // Begins the run, in the background and in a way that survives our own end; it writes its own end into its row.
  virtual absl::Status Start(const Schedule& schedule, const store::RunRow& run) = 0;
  virtual bool Alive(int64_t run) = 0;
  // For one that takes too long.
  virtual void Stop(int64_t run) = 0;
};

struct SchedulerOptions {
  int max_running = 2;
  // A run that could have begun this long ago was missed; later ones were only busy waiting.
  absl::Duration tolerance = absl::Minutes(5);
  absl::Duration first_retry_after = absl::Minutes(1);
  // While something runs, its row is looked at this often; else sessions and the clock at least so often.
  absl::Duration poll = absl::Milliseconds(500);
  absl::Duration longest_wait = absl::Seconds(15);
  // How long schedules and sessions may be remembered without looking.
  absl::Duration reload_every = absl::Seconds(10);
};

class Scheduler {
 public:
  Scheduler(RunBook& book, Host& host, Announcer& announcer, Clock& clock, const SchedulerOptions& options);

  // Takes over from an earlier process: what still runs is watched on, what does not is closed as interrupted.
  absl::Status Recover();
  // Does everything that is due. Gives how long nothing more can be.
  absl::StatusOr<absl::Duration> Step();
  // Begins runs now, beside the timing, as far as the limits allow. Empty: all sessions that the schedule fits.
  // NOT_FOUND; UNAVAILABLE when one of them is busy.
  absl::StatusOr<std::vector<store::RunRow>> RunNow(const std::string& schedule,
                                                    const std::vector<std::string>& sessions);
  const Alerts& alerts() const { return alerts_; }
  // Schedules or sessions have changed: the next step looks at them.
  void Reload() { loaded_at_ = -absl::InfiniteDuration(); }
  // No new runs; those that run are watched on.
  void Drain() { draining_ = true; }
  size_t running() const { return running_.size(); }

 private:
  using PairKey = std::pair<std::string, std::string>;  // Schedule, session.
  struct Pair {
    const Schedule* schedule = nullptr;
    std::string session;
    bool exists = false;             // The session is there.
    bool can_run = false;            // ... and running.
    absl::Time cursor;               // Occurrences until then have their row.
    std::optional<absl::Time> next;  // The first occurrence after it; nullopt: never.
    absl::Time due;
    std::optional<absl::Time> seen;  // The newest occurrence that was due, and when that was noticed.
    absl::Time seen_at;
    std::optional<absl::Time> retry_at;
    absl::Time retry_planned;
    uint32_t attempts = 0;
    Freshness freshness;
    bool freshness_known = false;  // The repository was asked.
    bool told_stale = false;
    absl::Duration max_age;
    absl::Time max_age_of;  // When it was worked out.
    absl::Time counted_from;
  };
  struct Active {
    PairKey pair;
    absl::Duration deadline;  // Of the monotonic clock.
    bool stopped = false;
  };
  struct Due {
    absl::Time since;
    Pair* pair;
  };

  absl::Status LoadPairs(absl::Time now);
  void UpdatePair(const Schedule& schedule, const SessionState& state, bool exists, absl::Time now);
  void NoticeClock(absl::Time now);
  void FindNext(Pair& pair) const;
  void NoticeDue(Pair& pair, absl::Time now) const;
  absl::Status CloseEnded(absl::Time now);
  absl::Status Ended(const PairKey& key, const store::RunRow& run, absl::Time now);
  std::vector<Due> FindDue(absl::Time now);
  absl::Status BeginDue(const Due& due, absl::Time now);
  absl::Status BeginOccurrence(Pair& pair, absl::Time now);
  absl::StatusOr<store::RunRow> Begin(Pair& pair, const store::RunRow& planned, absl::Time now);
  bool HasRoom(const Pair& pair) const;
  absl::Status LookForStale(absl::Time now);
  absl::Duration UntilNext(absl::Time now) const;
  static store::RunRow RowFor(const Pair& pair, absl::Time planned, uint64_t occurrences);

  RunBook& book_;
  Host& host_;
  Clock& clock_;
  const SchedulerOptions options_;
  Alerts alerts_;
  std::vector<Schedule> schedules_;
  std::map<PairKey, Pair> pairs_;
  std::map<PairKey, absl::Time> cursors_;
  std::map<int64_t, Active> running_;
  std::set<std::string> busy_;  // Sessions with a run.
  absl::Time last_now_ = absl::InfinitePast();
  absl::Duration loaded_at_ = -absl::InfiniteDuration();  // Of the monotonic clock.
  bool draining_ = false;
};

}  // namespace still::schedule
