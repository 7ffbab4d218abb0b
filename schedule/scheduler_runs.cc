// Scheduler: runs are begun, watched and closed.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "schedule/scheduler.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using store::RunRow;

// Retries wait twice as long each time, up to this.
constexpr uint32_t kMostDoublings = 6;
// So many good runs below the promised level are told: one or two may be a guest that was busy.
constexpr uint32_t kMostBelow = 3;

std::string Described(const RunRow& run) {
  return absl::StrCat(run.kind, run.session.empty() ? "" : " of ", run.session, " (schedule ", run.schedule, ")");
}

}  // namespace

// occurrences: 0 for what stands for none of the timing's.
RunRow Scheduler::RowFor(const Pair& pair, absl::Time planned, uint64_t occurrences) {
  return {.schedule = pair.schedule->name(),
          .kind = KindName(pair.schedule->definition.kind()),
          .session = pair.session,
          .planned = planned,
          .planned_until = planned,
          .occurrences = occurrences};
}

bool Scheduler::HasRoom(const Pair& pair) const {
  if (busy_.count(pair.session) != 0) return false;
  if (running_.size() >= static_cast<size_t>(std::max(options_.max_running, 1))) return false;
  const uint32_t limit = pair.schedule->definition.concurrency();
  if (limit == 0) return true;
  auto of_this = std::count_if(running_.begin(), running_.end(),
                               [&](const auto& entry) { return entry.second.pair.first == pair.schedule->name(); });
  return static_cast<uint32_t>(of_this) < limit;
}

absl::Status Scheduler::BeginDue(const Due& due, absl::Time now) {
  Pair& pair = *due.pair;
  if (pair.seen.has_value()) return BeginOccurrence(pair, now);
  PairMemory memory = pair.memory;
  memory.retry_at.reset();
  if (!pair.can_run) {
    Change(pair, memory);  // Its next occurrence will say so.
    return absl::OkStatus();
  }
  if (!HasRoom(pair)) return absl::OkStatus();
  Change(pair, memory);
  absl::StatusOr<RunRow> begun = Begin(pair, RowFor(pair, memory.retry_planned, 0), now);
  if (begun.ok() || pair.memory.retry_at.has_value()) return begun.status();
  // What could not be written down is tried again in the next turn.
  memory.retry_at = now;
  Change(pair, memory);
  return begun.status();
}

// Everything from pair.next to pair.seen gets its row: the newest is run, those before it were missed.
absl::Status Scheduler::BeginOccurrence(Pair& pair, absl::Time now) {
  const absl::Time newest = *pair.seen;
  const Timing& timing = pair.schedule->timing;
  if (pair.can_run && !HasRoom(pair)) return absl::OkStatus();
  RunRow missed = RowFor(pair, *pair.next, 0);
  for (std::optional<absl::Time> at = pair.next; at.has_value() && *at < newest; at = timing.Next(*at)) {
    missed.planned_until = *at;
    ++missed.occurrences;
  }
  const absl::Duration late = pair.seen_at - newest - timing.Delay(pair.schedule->name(), pair.session, newest);
  const bool skip = timing.missed == MissedPolicy::kSkip && late > options_.tolerance;
  if (skip || !pair.can_run) {
    missed.planned_until = newest;
    ++missed.occurrences;
  }
  missed.ended = now;
  missed.outcome = RunOutcome::kMissed;
  missed.message = skip ? "too late to begin, and what is missed is skipped"
                        : "passed while stilld was stopped, a blackout lasted or an earlier run was under way";
  if (!pair.can_run) {
    missed.outcome = pair.exists ? RunOutcome::kSkipped : RunOutcome::kFailed;
    missed.message = pair.exists ? "the session is not running" : "there is no such session";
  }
  if (missed.occurrences > 0) STILL_RETURN_IF_ERROR(book_.AddRun(missed).status());
  // Counted is only what has its row: what could not be written down stays due.
  if (missed.occurrences > 0) Counted(pair, missed.planned_until);
  if (skip || !pair.can_run) {
    return missed.outcome == RunOutcome::kFailed ? Ended({missed.schedule, missed.session}, missed, now)
                                                 : absl::OkStatus();
  }
  return Begin(pair, RowFor(pair, newest, 1), now).status();
}

// Occurrences until then have their row.
void Scheduler::Counted(Pair& pair, absl::Time until) {
  pair.cursor = until;
  cursors_[{pair.schedule->name(), pair.session}] = until;
  if (pair.seen.has_value() && *pair.seen <= until) {
    pair.seen.reset();
    PairMemory memory = pair.memory;
    memory.retry_at.reset();
    memory.attempts = 0;
    Change(pair, memory);
  }
  FindNext(pair);
}

// The row is there before anything begins: whatever happens then, history knows of it.
absl::StatusOr<RunRow> Scheduler::Begin(Pair& pair, const RunRow& planned, absl::Time now) {
  RunRow run = planned;
  run.started = now;
  STILL_ASSIGN_OR_RETURN(run.id, book_.AddRun(run));
  if (run.occurrences > 0) Counted(pair, run.planned_until);
  const PairKey key{run.schedule, run.session};
  const absl::Duration began = clock_.Monotonic();
  running_[run.id] = {.pair = key, .began = began, .deadline = began + pair.schedule->time_limit};
  busy_.insert(run.session);
  absl::Status started = host_.Start(*pair.schedule, run);
  if (!started.ok()) {
    run.outcome = RunOutcome::kFailed;
    run.ended = now;
    run.message = std::string(started.message());
    running_.erase(run.id);
    STILL_RETURN_IF_ERROR(FirstError(book_.UpdateRun(run), Ended(key, run, now)));
  }
  return run;
}

absl::Status Scheduler::CloseEnded(absl::Time now) {
  // One row after the other; an error leaves the rest to the next turn.
  for (auto entry = running_.begin(); entry != running_.end();) {
    const int64_t id = entry->first;
    Active& active = entry->second;
    // Asked before its row is read: whoever is gone has written all that it ever will.
    const bool alive = host_.Alive(id);
    STILL_ASSIGN_OR_RETURN(std::optional<RunRow> run, book_.FindRun(id));
    if (alive && run.has_value()) {
      if (!active.stopped && clock_.Monotonic() > active.deadline) {
        LogWarning("a run takes too long and is ended", {{"run", id}, {"schedule", run->schedule}});
        active.stopped = true;
        host_.Stop(id);
      }
      ++entry;
      continue;
    }
    const PairKey key = active.pair;
    if (run.has_value() && run->outcome == RunOutcome::kRunning) {
      run->outcome = active.stopped ? RunOutcome::kFailed : RunOutcome::kInterrupted;
      run->ended = now;
      run->message = active.stopped ? "it took longer than its time limit" : "its process ended before it was done";
      STILL_RETURN_IF_ERROR(book_.UpdateRun(*run));
    }
    if (run.has_value()) NoticeBegun(active, *run, now);
    entry = running_.erase(entry);
    if (run.has_value()) {
      STILL_RETURN_IF_ERROR(Ended(key, *run, now));
    } else {
      busy_.erase(key.second);
    }
  }
  return absl::OkStatus();
}

// The clock may have been set since a run began: what it began at, by the clock as it is now.
void Scheduler::NoticeBegun(const Active& active, RunRow& run, absl::Time now) {
  if (!run.started.has_value()) return;
  if (auto pair = pairs_.find(active.pair); pair != pairs_.end() && *run.started > now) {
    pair->second.freshness_known = false;  // Its snapshot's point is ahead, and that is to be remembered.
  }
  run.started = active.began.has_value() ? now - (clock_.Monotonic() - *active.began)
                                         : TakenAtTheLatest(PairMemory{}, *run.started, now);
}

absl::Status Scheduler::Ended(const PairKey& key, const RunRow& run, absl::Time now) {
  busy_.erase(key.second);
  auto found = pairs_.find(key);
  if (run.outcome == RunOutcome::kSucceeded) {
    if (found != pairs_.end()) {
      PairMemory memory = found->second.memory;
      memory.attempts = 0;
      memory.retry_at.reset();
      Change(found->second, memory);
      if (found->second.schedule->captures()) NoticeLevel(found->second, run, now);
    }
    alerts_.Clear(Event::Kind::kFailed, key.first, key.second, now, absl::StrCat(Described(run), " works again"));
    return absl::OkStatus();
  }
  if (found != pairs_.end() && found->second.memory.attempts < found->second.schedule->definition.retries()) {
    PairMemory memory = found->second.memory;
    // What was interrupted by our own end is tried again at once.
    const bool at_once = run.outcome == RunOutcome::kInterrupted && memory.attempts == 0;
    memory.retry_at =
        at_once ? now : now + options_.first_retry_after * (1 << std::min(memory.attempts, kMostDoublings));
    memory.retry_planned = run.planned_until;
    ++memory.attempts;
    Change(found->second, memory);
  }
  alerts_.Raise({.kind = Event::Kind::kFailed,
                 .schedule = key.first,
                 .session = key.second,
                 .at = now,
                 .message = absl::StrCat(Described(run), " ", OutcomeName(run.outcome), ": ", run.message)});
  return absl::OkStatus();
}

Level Scheduler::Promised(const Pair& pair) const {
  const Level given = LevelOfName(pair.schedule->definition.require());
  return given != manifestpb::Consistency::LEVEL_UNSPECIFIED ? given : pair.memory.level;
}

// A snapshot was taken. It counts as far as it keeps what is promised.
void Scheduler::NoticeLevel(Pair& pair, const RunRow& run, absl::Time now) {
  const Level reached = std::max(LevelOfName(run.consistency), manifestpb::Consistency::CRASH);
  PairMemory memory = pair.memory;
  if (memory.level == manifestpb::Consistency::LEVEL_UNSPECIFIED) memory.level = reached;
  const bool kept = reached >= std::max(Promised(pair), manifestpb::Consistency::CRASH);
  memory.below = kept ? 0 : memory.below + 1;
  Change(pair, memory);
  const std::string& name = pair.schedule->name();
  if (kept) {
    pair.freshness.Good(std::min(run.started.value_or(now), now));
    pair.newest_level = reached;
    alerts_.Clear(Event::Kind::kLevel, name, pair.session, now,
                  absl::StrCat("snapshots of ", pair.session, " are ", NameOfLevel(reached), "-consistent again"));
    return;
  }
  if (memory.below < kMostBelow) return;
  alerts_.Raise({.kind = Event::Kind::kLevel,
                 .schedule = name,
                 .session = pair.session,
                 .at = now,
                 .message = absl::StrCat("the last ", memory.below, " snapshots of ", pair.session, " were only ",
                                         NameOfLevel(reached), "-consistent; schedule ", name, " promises ",
                                         NameOfLevel(Promised(pair)), " (still show says why)")});
}

void Scheduler::Change(Pair& pair, const PairMemory& memory) {
  if (pair.memory == memory) return;
  pair.memory = memory;
  const PairKey key{pair.schedule->name(), pair.session};
  memories_[key] = memory;
  unsaved_.insert(key);
}

absl::Status Scheduler::KeepMemories() {
  std::map<std::string, std::string> values = loops_.unsaved();
  for (const PairKey& key : unsaved_) {
    auto memory = memories_.find(key);
    values[PairMemoryKey(key.first, key.second)] = memory == memories_.end() ? "" : EncodePairMemory(memory->second);
  }
  STILL_RETURN_IF_ERROR(book_.RememberAll(values));
  unsaved_.clear();
  loops_.Saved();
  return absl::OkStatus();
}

absl::StatusOr<BegunRuns> Scheduler::RunNow(const std::string& schedule, const std::vector<std::string>& sessions) {
  const absl::Time now = clock_.Now();
  STILL_RETURN_IF_ERROR(LoadPairs(now));
  STILL_RETURN_IF_ERROR(CloseEnded(now));
  std::vector<Pair*> chosen;
  bool known = false;
  for (auto& [key, pair] : pairs_) {
    if (key.first != schedule) continue;
    known = true;
    bool asked_for = std::find(sessions.begin(), sessions.end(), key.second) != sessions.end();
    if (asked_for || (sessions.empty() && pair.can_run)) chosen.push_back(&pair);
  }
  if (!known) return absl::NotFoundError(absl::StrCat("there is no schedule \"", schedule, "\" with a session"));
  if (chosen.empty()) return absl::NotFoundError(absl::StrCat("schedule ", schedule, " fits no session that runs"));
  for (const auto& [id, active] : running_) {
    if (active.pair.first != schedule) continue;
    for (const Pair* pair : chosen) {
      if (active.pair.second != pair->session) continue;
      return absl::UnavailableError(absl::StrCat("a run of ", schedule, pair->session.empty() ? "" : " of ",
                                                 pair->session, " is under way; try again when it is over"));
    }
  }
  BegunRuns begun;
  for (Pair* pair : chosen) {
    if (!HasRoom(*pair)) {
      PairMemory memory = pair->memory;
      memory.retry_at = now;
      memory.retry_planned = now;
      Change(*pair, memory);
      begun.waiting.push_back(pair->session);
      continue;
    }
    STILL_ASSIGN_OR_RETURN(RunRow run, Begin(*pair, RowFor(*pair, now, 0), now));
    begun.runs.push_back(std::move(run));
  }
  return begun;
}

}  // namespace still::schedule
