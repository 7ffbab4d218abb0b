// Scheduler: what is due. scheduler_runs.cc begins runs and closes them.
#include "schedule/scheduler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/quantity.h"

namespace still::schedule {
namespace {

using store::RunRow;

// How often a schedule's own dead man's limit is worked out anew: gaps differ with the season.
constexpr absl::Duration kMaxAgeGoodFor = absl::Hours(24);

bool IsPattern(const std::string& text) { return text.find_first_of("*?") != std::string::npos; }

}  // namespace

Scheduler::Scheduler(RunBook& book, Host& host, Announcer& announcer, Clock& clock, const SchedulerOptions& options)
    : book_(book), host_(host), clock_(clock), options_(options), alerts_(book, announcer) {}

absl::Status Scheduler::Recover() {
  STILL_RETURN_IF_ERROR(alerts_.Load());
  STILL_ASSIGN_OR_RETURN(std::vector<store::RunCursor> cursors, book_.Cursors());
  for (const store::RunCursor& cursor : cursors) cursors_[{cursor.schedule, cursor.session}] = cursor.planned_until;
  const absl::Time now = clock_.Now();
  STILL_RETURN_IF_ERROR(LoadPairs(now));
  STILL_ASSIGN_OR_RETURN(std::vector<RunRow> running, book_.Running());
  for (const RunRow& run : running) {
    PairKey key{run.schedule, run.session};
    auto pair = pairs_.find(key);
    absl::Duration limit = pair == pairs_.end() ? absl::Hours(24) : pair->second.schedule->time_limit;
    running_[run.id] = {.pair = key, .deadline = clock_.Monotonic() + limit};
    busy_.insert(run.session);
  }
  if (!running.empty()) LogInfo("runs of an earlier process", {{"count", running.size()}});
  return CloseEnded(now);
}

absl::StatusOr<absl::Duration> Scheduler::Step() {
  const absl::Time now = clock_.Now();
  if (clock_.Monotonic() - loaded_at_ >= options_.reload_every) STILL_RETURN_IF_ERROR(LoadPairs(now));
  NoticeClock(now);
  STILL_RETURN_IF_ERROR(CloseEnded(now));
  if (!draining_) {
    std::vector<Due> due = FindDue(now);
    // Who has waited longest comes first.
    std::stable_sort(due.begin(), due.end(), [](const Due& a, const Due& b) { return a.since < b.since; });
    for (const Due& next : due) STILL_RETURN_IF_ERROR(BeginDue(next, now));
  }
  STILL_RETURN_IF_ERROR(LookForStale(now));
  return UntilNext(now);
}

absl::Status Scheduler::LoadPairs(absl::Time now) {
  // Both or neither: pairs point into schedules_.
  STILL_ASSIGN_OR_RETURN(std::vector<Schedule> schedules, book_.Schedules());
  STILL_ASSIGN_OR_RETURN(std::vector<SessionState> sessions, host_.Sessions());
  schedules_ = std::move(schedules);
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
  return alerts_.KeepOnly([this](const std::string& schedule, const std::string& session) {
    return pairs_.count({schedule, session}) != 0;
  });
}

void Scheduler::UpdatePair(const Schedule& schedule, const SessionState& state, bool exists, absl::Time now) {
  auto [at, added] = pairs_.try_emplace({schedule.name(), state.name});
  Pair& pair = at->second;
  pair.schedule = &schedule;
  if (added || pair.counted_from != schedule.counted_from) {
    pair.session = state.name;
    auto known = cursors_.find(at->first);
    pair.cursor = std::max(schedule.counted_from, known == cursors_.end() ? absl::InfinitePast() : known->second);
    pair.cursor = std::min(pair.cursor, now);
    pair.counted_from = schedule.counted_from;
    pair.seen.reset();
    pair.max_age_of = absl::InfinitePast();
    pair.told_stale = alerts_.Raised(Event::Kind::kStale, schedule.name(), state.name);
    FindNext(pair);
    pair.freshness.Good(schedule.counted_from);
  } else if (state.running && !pair.can_run) {
    pair.freshness.Good(now);  // It was off: there was nothing new to take a snapshot of.
  }
  pair.exists = exists;
  pair.can_run = exists && state.running;
  if (!schedule.captures()) return;
  if (!pair.freshness_known) {
    absl::StatusOr<std::optional<absl::Time>> newest = host_.NewestGood(state.name);
    pair.freshness_known = newest.ok();
    if (!newest.ok()) LogWarning("newest snapshot unknown", {{"error", newest.status().ToString()}});
    if (newest.ok() && newest->has_value()) pair.freshness.Good(**newest);
  }
  pair.freshness.NoLaterThan(now);
  if (now - pair.max_age_of > kMaxAgeGoodFor || pair.max_age_of > now) {
    pair.max_age = schedule.MaxAge(now);
    pair.max_age_of = now;
  }
}

void Scheduler::FindNext(Pair& pair) const {
  pair.next = pair.schedule->timing.Next(pair.cursor);
  if (pair.next.has_value()) {
    pair.due = *pair.next + pair.schedule->timing.Delay(pair.schedule->name(), pair.session, *pair.next);
  }
}

// A clock that was set back would otherwise hold everything up until it has caught up.
void Scheduler::NoticeClock(absl::Time now) {
  if (now < last_now_) {
    LogWarning("the clock was set back", {{"seconds", absl::ToInt64Seconds(last_now_ - now)}});
    for (auto& [key, pair] : pairs_) {
      pair.cursor = std::min(pair.cursor, now);
      pair.seen.reset();
      pair.freshness.NoLaterThan(now);
      if (pair.retry_at.has_value()) pair.retry_at = std::min(*pair.retry_at, now + options_.first_retry_after);
      FindNext(pair);
    }
    for (auto& [key, cursor] : cursors_) cursor = std::min(cursor, now);
  }
  last_now_ = now;
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
    bool retry = pair.retry_at.has_value() && *pair.retry_at <= now;
    bool occurrence = pair.next.has_value() && pair.due <= now;
    if (!retry && !occurrence) continue;
    if (pair.schedule->timing.BlackedOutUntil(now).has_value()) continue;
    if (occurrence) NoticeDue(pair, now);
    all.push_back({.since = occurrence ? pair.due : *pair.retry_at, .pair = &pair});
  }
  return all;
}

absl::Status Scheduler::LookForStale(absl::Time now) {
  for (auto& [key, pair] : pairs_) {
    if (!pair.schedule->captures() || pair.schedule->definition.paused() || (pair.exists && !pair.can_run)) continue;
    const std::string& name = pair.schedule->name();
    if (pair.freshness.Age(now) > pair.max_age) {
      pair.told_stale = true;
      STILL_RETURN_IF_ERROR(
          alerts_.Raise({.kind = Event::Kind::kStale,
                         .schedule = name,
                         .session = pair.session,
                         .at = now,
                         .message = absl::StrCat(pair.session, " has had no good snapshot for ",
                                                 ShortDuration(pair.freshness.Age(now)), "; at most ",
                                                 ShortDuration(pair.max_age), " are allowed by schedule ", name)}));
    } else if (pair.told_stale) {
      pair.told_stale = false;
      STILL_RETURN_IF_ERROR(alerts_.Clear(Event::Kind::kStale, name, pair.session, now,
                                          absl::StrCat(pair.session, " has a fresh snapshot again")));
    }
  }
  return absl::OkStatus();
}

absl::Duration Scheduler::UntilNext(absl::Time now) const {
  absl::Duration wait = running_.empty() ? options_.longest_wait : options_.poll;
  auto at = [&](absl::Time time) {
    if (time > now) wait = std::min(wait, time - now);
  };
  for (const auto& [key, pair] : pairs_) {
    if (pair.schedule->definition.paused()) continue;
    if (pair.next.has_value()) at(pair.due);
    if (pair.retry_at.has_value()) at(*pair.retry_at);
    if (pair.schedule->captures()) at(pair.freshness.newest() + pair.max_age + absl::Seconds(1));
    if (pair.next.has_value() && pair.due <= now) {
      at(pair.schedule->timing.BlackedOutUntil(now).value_or(now));
    }
  }
  return wait;
}

}  // namespace still::schedule
