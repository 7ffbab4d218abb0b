// Scheduler: decides what runs when, and sees to it that nothing that was planned goes by without a row and no machine
// stays without a good snapshot without somebody being told. It does none of it itself: the edges below do.
//
//   Scheduler scheduler(book, host, announcer, clock, {});
//   STILL_RETURN_IF_ERROR(scheduler.Recover());
//   for (;;) { absl::StatusOr<absl::Duration> wait = scheduler.Step(); ...wait, at most that long... }
//
// The principle: for every machine that a schedule names, either a good snapshot of the promised level is young enough, or
// somebody has been told and the message has arrived. So ages are looked at in every turn, whatever else fails in it, and
// that turns fail is told too.
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
#include "schedule/pair_state.h"
#include "schedule/restart_loops.h"
#include "schedule/schedule.h"
#include "schedule/scheduler_edges.h"
#include "schedule/scheduler_options.h"
#include "store/book/rows.h"

namespace still::schedule {

// One machine and what protects it.
struct Cover {
  SessionState session;
  std::string schedule;  // Empty: nothing.
  Level promised = manifestpb::Consistency::LEVEL_UNSPECIFIED;
  std::optional<absl::Time> newest;  // That keeps the promise.
  Level newest_level = manifestpb::Consistency::LEVEL_UNSPECIFIED;
  absl::Duration max_age;
  bool stale = false;
};

// What was begun by hand.
struct BegunRuns {
  std::vector<store::RunRow> runs;
  std::vector<std::string> waiting;  // Sessions that begin when there is room.
};

class Scheduler {
 public:
  Scheduler(RunBook& book, Host& host, Announcer& announcer, Clock& clock, const SchedulerOptions& options);

  // Reads how things are and changes nothing: for whoever only looks. Works without a repository; a turn does not.
  absl::Status Load();
  // Takes over from an earlier process: what still runs is watched on, what does not is closed as interrupted.
  absl::Status Recover();
  // Writes down what must outlive the process; each turn does. For whoever takes none.
  absl::Status Keep();
  // A turn: does everything that is due. Gives how long nothing more can be. An error: part of it could not be done, the
  // rest was; take the next turn soon. `outside`: what the caller could not do for it; the turn counts as failed then.
  absl::StatusOr<absl::Duration> Step(const absl::Status& outside = absl::OkStatus());
  // Begins runs now, beside the timing, as far as the limits allow; the others begin when there is room. Empty: all
  // sessions that the schedule fits. NOT_FOUND; UNAVAILABLE when one of them is busy.
  absl::StatusOr<BegunRuns> RunNow(const std::string& schedule, const std::vector<std::string>& sessions);
  const Alerts& alerts() const { return alerts_; }
  // Something is wrong with the schedules that only somebody else can see. No turn of ours proves that it is over.
  void RaiseTrouble(const std::string& message);
  // Goes on telling, and does nothing else. Whether some of it is still under way.
  bool Telling();
  // Every machine of the host, once for each schedule that takes snapshots of it, or once without one.
  std::vector<Cover> Coverage() const;
  // As of the last look.
  const std::vector<SessionState>& sessions() const { return sessions_; }
  // When a turn was last done in full; InfinitePast(): never.
  absl::Time last_full_turn() const { return last_full_turn_; }
  // Schedules or sessions have changed: the next step looks at them.
  void Reload() { loaded_at_ = -absl::InfiniteDuration(); }
  // No new runs; those that run are watched on.
  void Drain() { draining_ = true; }
  // Begins nothing, and its turns prove nothing: that nobody takes any others is trouble. Before the first turn.
  void OnlyLook() { draining_ = looking_ = true; }
  size_t running() const { return running_.size(); }

 private:
  using PairKey = std::pair<std::string, std::string>;  // Schedule, session.
  struct Pair {
    const Schedule* schedule = nullptr;
    std::string session;
    bool exists = false;   // The session is there.
    bool can_run = false;  // ... and something can be done to it: it runs, or its disks are read while it is off.
    bool off = false;      // It is there, and does not run.
    absl::Time cursor;     // Occurrences until then have their row.
    std::optional<absl::Time> next;  // The first occurrence after it; nullopt: never.
    absl::Time due;
    std::optional<absl::Time> seen;  // The newest occurrence that was due, and when that was noticed.
    absl::Time seen_at;
    PairMemory memory;
    Freshness freshness;
    bool freshness_known = false;  // The repository was asked.
    Level newest_level = manifestpb::Consistency::LEVEL_UNSPECIFIED;
    bool stale = false;  // And somebody is told.
    absl::Duration max_age;
    absl::Time max_age_of;  // When it was worked out.
    absl::Time counted_from;
    absl::TimeZone zone;
  };
  struct Active {
    PairKey pair;
    std::optional<absl::Duration> began;  // Of the monotonic clock; nullopt: by an earlier process.
    absl::Duration deadline;              // Of the same.
    bool stopped = false;
  };
  struct Due {
    absl::Time since;
    Pair* pair;
  };

  absl::Status Turn(absl::Time now);
  void NoticeTurn(const absl::Status& turn, absl::Time now);
  absl::Status LoadPairs(absl::Time now);
  Level Promised(const Pair& pair) const;
  void NoticeLevel(Pair& pair, const store::RunRow& run, absl::Time now);
  void Change(Pair& pair, const PairMemory& memory);
  void ClampKnown(Pair& pair, absl::Time now);
  absl::Time TakenAtTheLatest(const PairMemory& memory, absl::Time point, absl::Time now) const;
  void NoticeNewest(Pair& pair, const Newest& newest, absl::Time now);
  absl::Status KeepMemories();
  absl::Status NoteTurn(absl::Time now);
  absl::Status LookWhetherAnybodyWorks(absl::Time now);
  void LookForDropouts(absl::Time now);
  void LookForRestarts(const SessionState& session, absl::Time now);
  void LookForUnmatched(absl::Time now);
  void LookForLost(absl::Time now);
  void QuietPaused();
  void LookForGone(absl::Time now);
  bool StillWanted(const Event& event) const;
  bool NamedByCapture(const std::string& session) const;
  void UpdatePair(const Schedule& schedule, const SessionState& state, bool exists, absl::Time now);
  absl::Status LookForSnapshots(absl::Time now);
  void NoticeClock(absl::Time now);
  void FindNext(Pair& pair) const;
  void NoticeDue(Pair& pair, absl::Time now) const;
  absl::Status CloseEnded(absl::Time now);
  void NoticeBegun(const Active& active, store::RunRow& run, absl::Time now);
  absl::Status Ended(const PairKey& key, const store::RunRow& run, absl::Time now);
  std::vector<Due> FindDue(absl::Time now);
  std::optional<Due> LongestDue(absl::Time now);
  absl::Status BeginDue(const Due& due, absl::Time now);
  absl::Status BeginOccurrence(Pair& pair, absl::Time now);
  absl::StatusOr<store::RunRow> Begin(Pair& pair, const store::RunRow& planned, absl::Time now);
  void Counted(Pair& pair, absl::Time until);
  bool HasRoom(const Pair& pair) const;
  void LookForStale(absl::Time now);
  absl::Duration UntilNext(absl::Time now) const;
  static store::RunRow RowFor(const Pair& pair, absl::Time planned, uint64_t occurrences);

  RunBook& book_;
  Host& host_;
  Announcer& announcer_;
  Clock& clock_;
  const SchedulerOptions options_;
  Alerts alerts_;
  std::vector<Schedule> schedules_;
  std::vector<SessionState> sessions_;
  std::map<std::string, std::string> unusable_;
  std::map<PairKey, PairMemory> memories_;       // As the book has them.
  std::set<PairKey> unsaved_;                    // Pairs whose memory is not in the book yet.
  std::map<PairKey, absl::Duration> unmatched_;  // Schedule and pattern; since when, by the monotonic clock.
  bool looked_for_unmatched_ = false;
  RestartLoops loops_;
  std::map<std::string, absl::Time> lost_;  // Schedules of an earlier book, as this one has them.
  std::map<PairKey, Pair> pairs_;
  std::map<PairKey, absl::Time> cursors_;
  std::map<int64_t, Active> running_;
  std::set<std::string> busy_;  // Sessions with a run.
  absl::Time last_now_ = absl::InfinitePast();
  absl::Duration last_time_;  // Of the monotonic clock, then.
  // The clock was set back by so much, last, when it said this.
  absl::Time set_back_at_ = absl::InfinitePast();
  absl::Duration set_back_by_;
  absl::Time last_full_turn_ = absl::InfinitePast();
  std::optional<absl::Duration> failing_since_;           // By the monotonic clock.
  absl::Duration loaded_at_ = -absl::InfiniteDuration();  // Of the monotonic clock.
  absl::Duration asked_at_ = -absl::InfiniteDuration();   // Of the same: when all snapshots were looked at.
  bool reloaded_ = false;                                 // In this turn.
  absl::Duration noted_at_ = -absl::InfiniteDuration();   // Of the same: when the book was told of a full turn.
  bool draining_ = false;
  bool looking_ = false;         // OnlyLook() was called.
  bool somebody_works_ = false;  // ... and there is proof of it.
  bool trouble_ = false;         // RaiseTrouble() was called.
};

}  // namespace still::schedule
