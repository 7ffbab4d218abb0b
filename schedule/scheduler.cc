// Scheduler: what is due. scheduler_runs.cc begins runs and closes them.
#include "schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/quantity.h"
#include "schedule/lost_schedules.h"

namespace still::schedule {
namespace {

using store::RunRow;

// How often a schedule's own dead man's limit is worked out anew: gaps differ with the season.
constexpr absl::Duration kMaxAgeGoodFor = absl::Hours(24);

// Snapshots are forgotten by hand, too: what there is, is looked at anew this often.
constexpr absl::Duration kAskAgainAfter = absl::Hours(1);
// No retry waits longer, whatever the clock said when it was planned.
constexpr absl::Duration kLongestRetry = absl::Hours(2);
// A snapshot from this little ahead is of now: clocks are set by small steps all the time.
constexpr absl::Duration kClocksDiffer = absl::Minutes(5);
// From that little ahead it may be of an hour ago at most: a time zone was taken for another one, and then set right.
constexpr absl::Duration kClocksAreSet = absl::Hours(14);

bool IsPattern(const std::string& text) { return text.find_first_of("*?") != std::string::npos; }

}  // namespace

Scheduler::Scheduler(RunBook& book, Host& host, Announcer& announcer, Clock& clock, const SchedulerOptions& options)
    : book_(book), host_(host), announcer_(announcer), clock_(clock), options_(options), alerts_(book, announcer) {}

absl::Status Scheduler::Load() {
  STILL_RETURN_IF_ERROR(alerts_.Load());
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  memories_.clear();
  for (const auto& [key, text] : remembered) {
    std::optional<PairKey> pair = ParsePairMemoryKey(key);
    if (!pair.has_value()) continue;
    if (std::optional<PairMemory> memory = DecodePairMemory(text)) memories_[*pair] = *memory;
  }
  lost_ = ParseLost(remembered);
  loops_.Load(remembered);
  STILL_ASSIGN_OR_RETURN(std::vector<store::RunCursor> cursors, book_.Cursors());
  for (const store::RunCursor& cursor : cursors) cursors_[{cursor.schedule, cursor.session}] = cursor.planned_until;
  const absl::Time now = clock_.Now();
  STILL_RETURN_IF_ERROR(LoadPairs(now));
  // That does not keep us from beginning: the next turn asks again, and says it. Whoever never begins tells nobody anything.
  if (absl::Status asked = LookForSnapshots(now); !asked.ok()) {
    LogWarning("it begins without knowing how old snapshots are", {{"error", asked.ToString()}});
  }
  STILL_ASSIGN_OR_RETURN(std::vector<RunRow> running, book_.Running());
  for (const RunRow& run : running) {
    PairKey key{run.schedule, run.session};
    auto pair = pairs_.find(key);
    absl::Duration limit = pair == pairs_.end() ? absl::Hours(24) : pair->second.schedule->time_limit;
    running_[run.id] = {.pair = key, .began = std::nullopt, .deadline = clock_.Monotonic() + limit};
    busy_.insert(run.session);
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Recover() {
  STILL_RETURN_IF_ERROR(Load());
  if (!running_.empty()) LogInfo("runs of an earlier process", {{"count", running_.size()}});
  return CloseEnded(clock_.Now());
}

absl::Status Scheduler::Keep() { return FirstError(KeepMemories(), alerts_.Keep()); }

absl::StatusOr<absl::Duration> Scheduler::Step(const absl::Status& outside) {
  const absl::Time now = clock_.Now();
  NoticeClock(now);
  absl::Status turn = outside;
  turn.Update(Turn(now));
  // Whatever has failed: who is without a good snapshot is looked at, and told.
  LookForStale(now);
  if (std::exchange(reloaded_, false)) LookForDropouts(now);
  turn.Update(KeepMemories());
  if (looking_) {
    turn.Update(LookWhetherAnybodyWorks(now));
  } else if (turn.ok() && !draining_) {
    turn.Update(NoteTurn(now));
  }
  NoticeTurn(turn, now);
  turn.Update(alerts_.Work(now));
  if (!turn.ok()) return turn;
  last_full_turn_ = now;
  // That nothing is wrong yet is no reason to call when nobody sees to it that it stays so.
  if (!alerts_.AnyTrue() && (!looking_ || somebody_works_)) announcer_.AllWell();
  return UntilNext(now);
}

// The first error is given, and nothing that can be done all the same is left out for it.
absl::Status Scheduler::Turn(absl::Time now) {
  absl::Status first;
  if (clock_.Monotonic() - loaded_at_ >= options_.reload_every) {
    const absl::Status loaded = LoadPairs(now);
    first.Update(loaded.ok() ? LookForSnapshots(now) : loaded);
    // `still schedule check` told them while we hung: who was told of a thing is told of its end.
    first.Update(alerts_.Adopt());
  }
  first.Update(CloseEnded(now));
  if (draining_) return first;
  std::vector<Due> due = FindDue(now);
  // Who has waited longest comes first.
  std::stable_sort(due.begin(), due.end(), [](const Due& a, const Due& b) { return a.since < b.since; });
  for (const Due& next : due) first.Update(BeginDue(next, now));
  return first;
}

// All but how old their snapshots are.
absl::Status Scheduler::LoadPairs(absl::Time now) {
  // Both or neither: pairs point into schedules_.
  STILL_ASSIGN_OR_RETURN(std::vector<Schedule> schedules, book_.Schedules());
  std::map<std::string, std::string> unusable = book_.Unusable();
  STILL_ASSIGN_OR_RETURN(sessions_, host_.Sessions());
  // What cannot be read any more goes on as it was last read: somebody is told, and the machines keep their snapshots.
  for (const Schedule& known : schedules_) {
    if (unusable.count(known.name()) != 0) schedules.push_back(known);
  }
  unusable_ = std::move(unusable);
  schedules_ = std::move(schedules);
  const std::vector<SessionState>& sessions = sessions_;
  for (auto& [key, pair] : pairs_) pair.schedule = nullptr;
  for (const Schedule& schedule : schedules_) {
    if (!schedule.per_session()) {
      UpdatePair(schedule, {.name = "", .running = true}, true, now);
      continue;
    }
    for (const SessionState& session : sessions) {
      if (schedule.Fits(session.name)) UpdatePair(schedule, session, true, now);
    }
    for (const std::string& name : schedule.definition.sessions()) {
      bool there = IsPattern(name) || std::any_of(sessions.begin(), sessions.end(),
                                                  [&](const SessionState& session) { return session.name == name; });
      if (!there) UpdatePair(schedule, {.name = name}, false, now);
    }
  }
  for (auto pair = pairs_.begin(); pair != pairs_.end();) {
    pair = pair->second.schedule == nullptr ? pairs_.erase(pair) : std::next(pair);
  }
  loaded_at_ = clock_.Monotonic();
  reloaded_ = true;
  alerts_.KeepOnly([this](const Event& event) { return StillWanted(event); });
  return absl::OkStatus();
}

void Scheduler::UpdatePair(const Schedule& schedule, const SessionState& state, bool exists, absl::Time now) {
  auto [at, added] = pairs_.try_emplace({schedule.name(), state.name});
  Pair& pair = at->second;
  pair.schedule = &schedule;
  // The zone is the host's own in most schedules, and somebody may set it.
  if (added || pair.counted_from != schedule.counted_from || pair.zone != schedule.timing.zone) {
    pair.session = state.name;
    auto known = cursors_.find(at->first);
    pair.cursor = std::max(schedule.counted_from, known == cursors_.end() ? absl::InfinitePast() : known->second);
    pair.cursor = std::min(pair.cursor, now);
    pair.counted_from = schedule.counted_from;
    pair.zone = schedule.timing.zone;
    pair.seen.reset();
    pair.max_age_of = absl::InfinitePast();
    pair.freshness_known = false;  // Another level may be promised now.
    FindNext(pair);
  } else if (state.running && !pair.can_run && schedule.when_off == WhenOff::kSkip) {
    pair.freshness.CountFrom(now);  // It was off: there was nothing new to take a snapshot of.
  }
  if (added) {
    // Not from when the schedule was last edited: whoever edits it daily would never be told. Nor from when it could be read
    // again: a machine that came while it could not is not new by that.
    const absl::Time known = alerts_.RaisedSince(Event::Kind::kUnusable, schedule.name(), "").value_or(now);
    auto [memory, first] = memories_.try_emplace(at->first, PairMemory{.known = std::min(known, now)});
    if (first) unsaved_.insert(at->first);
    pair.memory = memory->second;
    ClampKnown(pair, now);
    if (pair.memory.retry_at.has_value()) pair.memory.retry_at = std::min(*pair.memory.retry_at, now + kLongestRetry);
    pair.freshness.CountFrom(pair.memory.known);
    pair.stale = alerts_.Raised(Event::Kind::kStale, schedule.name(), state.name);
  }
  if (exists && !pair.memory.was_there) {
    PairMemory memory = pair.memory;
    memory.was_there = true;
    Change(pair, memory);
  }
  pair.exists = exists;
  pair.can_run = exists && (state.running || (schedule.captures() && schedule.when_off == WhenOff::kDisk));
  pair.off = exists && !state.running;
  if (!schedule.captures()) return;
  if (now - pair.max_age_of > kMaxAgeGoodFor || pair.max_age_of > now) {
    pair.max_age = schedule.MaxAge(now);
    pair.max_age_of = now;
  }
}

// First seen while the clock was ahead: as of now, once.
void Scheduler::ClampKnown(Pair& pair, absl::Time now) {
  if (pair.memory.known <= now) return;
  PairMemory memory = pair.memory;
  memory.known = now;
  Change(pair, memory);
}

// Asks the repository once about all pairs of which it was not asked yet, and now and then about all.
absl::Status Scheduler::LookForSnapshots(absl::Time now) {
  std::set<std::string> unknown;
  const absl::Duration time = clock_.Monotonic();
  if (time - asked_at_ >= kAskAgainAfter) {
    asked_at_ = time;
    for (auto& [key, pair] : pairs_) pair.freshness_known = false;
  }
  for (const auto& [key, pair] : pairs_) {
    if (pair.schedule->captures() && !pair.freshness_known) unknown.insert(pair.session);
  }
  if (unknown.empty()) return absl::OkStatus();
  absl::StatusOr<std::map<std::string, Newest>> newest = host_.NewestGood(unknown);
  if (!newest.ok()) {
    Reload();  // The next turn asks again: one that asks nobody would be taken for a full one.
    return Annotate(newest.status(), "how old the newest snapshots are");
  }
  for (auto& [key, pair] : pairs_) {
    if (!pair.schedule->captures() || pair.freshness_known) continue;
    pair.freshness_known = true;
    pair.freshness.Asked();
    auto found = newest->find(pair.session);
    const Newest there = found == newest->end() ? Newest{} : found->second;
    // One that carries a future point hides those after it: then what we have seen ourselves is all that is known of them.
    const bool hides = std::any_of(there.begin(), there.end(), [&memory = pair.memory, now](const auto& entry) {
      return entry.second > now + kClocksDiffer || memory.ahead.count(entry.second) != 0;
    });
    if (!hides) {
      pair.freshness.ForgetGood();
      pair.newest_level = manifestpb::Consistency::LEVEL_UNSPECIFIED;
    }
    NoticeNewest(pair, there, now);
  }
  return absl::OkStatus();
}

void Scheduler::NoticeNewest(Pair& pair, const Newest& newest, absl::Time now) {
  PairMemory memory = pair.memory;
  memory.ahead.clear();
  for (const auto& [level, point] : newest) {
    const absl::Time taken = TakenAtTheLatest(pair.memory, point, now);
    if (point > now + kClocksDiffer || pair.memory.ahead.count(point) != 0) memory.ahead[point] = taken;
    if (level < Promised(pair) || taken < pair.freshness.good()) continue;
    pair.freshness.Good(taken);
    pair.newest_level = level;
  }
  Change(pair, memory);
}

// By the point that it carries. One in the future was written while the clock was ahead, and nobody but who saw the clock
// go back can tell by how much.
absl::Time Scheduler::TakenAtTheLatest(const PairMemory& memory, absl::Time point, absl::Time now) const {
  if (auto known = memory.ahead.find(point); known != memory.ahead.end()) return std::min(known->second, now);
  if (point <= now + kClocksDiffer) return std::min(point, now);
  if (point <= set_back_at_) return std::min(point - set_back_by_, now);
  return point <= now + kClocksAreSet ? now : absl::InfinitePast();
}

void Scheduler::FindNext(Pair& pair) const {
  pair.next = pair.schedule->timing.Next(pair.cursor);
  if (pair.next.has_value()) {
    pair.due = *pair.next + pair.schedule->timing.Delay(pair.schedule->name(), pair.session, *pair.next);
  }
}

// A clock that was set back would otherwise hold everything up until it has caught up.
void Scheduler::NoticeClock(absl::Time now) {
  const absl::Duration time = clock_.Monotonic();
  if (now < last_now_) {
    const absl::Duration by = last_now_ + (time - last_time_) - now;
    LogWarning("the clock was set back", {{"seconds", absl::ToInt64Seconds(by)}});
    set_back_at_ = now + by;
    set_back_by_ = by;
    // What the repository has is looked at anew, and what the clock stamped while it was ahead is remembered as such.
    const bool look_again = by > kClocksDiffer;
    if (look_again) Reload();
    for (auto& [key, pair] : pairs_) {
      if (look_again) pair.freshness_known = false;
      pair.cursor = std::min(pair.cursor, now);
      pair.seen.reset();
      pair.freshness.SetBack(now, by);
      std::optional<absl::Time>& retry_at = pair.memory.retry_at;
      if (retry_at.has_value()) retry_at = std::min(*retry_at, now + options_.first_retry_after);
      ClampKnown(pair, now);
      FindNext(pair);
    }
    for (auto& [key, cursor] : cursors_) cursor = std::min(cursor, now);
  }
  last_now_ = now;
  last_time_ = time;
}

// Remembers which occurrence is the newest that is due, and since when we know.
void Scheduler::NoticeDue(Pair& pair, absl::Time now) const {
  const Timing& timing = pair.schedule->timing;
  std::optional<absl::Time> candidate = pair.seen.has_value() ? timing.Next(*pair.seen) : pair.next;
  while (candidate.has_value() && *candidate <= now &&
         *candidate + timing.Delay(pair.schedule->name(), pair.session, *candidate) <= now) {
    pair.seen = candidate;
    pair.seen_at = now;
    candidate = timing.Next(*candidate);
  }
}

std::vector<Scheduler::Due> Scheduler::FindDue(absl::Time now) {
  std::vector<Due> all;
  for (auto& [key, pair] : pairs_) {
    if (pair.schedule->definition.paused()) continue;
    bool retry = pair.memory.retry_at.has_value() && *pair.memory.retry_at <= now;
    bool occurrence = pair.next.has_value() && pair.due <= now;
    if (!retry && !occurrence) continue;
    if (pair.schedule->timing.BlackedOutUntil(now).has_value()) continue;
    if (occurrence) NoticeDue(pair, now);
    all.push_back({.since = occurrence ? pair.due : *pair.memory.retry_at, .pair = &pair});
  }
  return all;
}

absl::Duration Scheduler::UntilNext(absl::Time now) const {
  absl::Duration wait = loaded_at_ + options_.reload_every - clock_.Monotonic();
  if (!running_.empty()) wait = std::min(wait, options_.poll);
  auto at = [&](absl::Time time) {
    if (time > now) wait = std::min(wait, time - now);
  };
  for (const auto& [key, pair] : pairs_) {
    if (pair.schedule->definition.paused()) continue;
    if (pair.next.has_value()) at(pair.due);
    if (pair.memory.retry_at.has_value()) at(*pair.memory.retry_at);
    if (pair.schedule->captures()) at(pair.freshness.newest() + pair.max_age + absl::Seconds(1));
    if (pair.next.has_value() && pair.due <= now) {
      at(pair.schedule->timing.BlackedOutUntil(now).value_or(now));
    }
  }
  at(alerts_.Next(now));
  return std::max(wait, absl::ZeroDuration());
}

}  // namespace still::schedule
