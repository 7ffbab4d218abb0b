// Scheduler: what is wrong, and what drops out.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/quantity.h"
#include "schedule/lost_schedules.h"
#include "schedule/scheduler.h"

namespace still::schedule {

using Kind = Event::Kind;

void Scheduler::LookForStale(absl::Time now) {
  for (auto& [key, pair] : pairs_) {
    const Schedule& schedule = *pair.schedule;
    if (!schedule.captures() || schedule.definition.paused()) continue;
    const std::string& name = schedule.name();
    const bool off = pair.off;
    if (off && schedule.when_off == WhenOff::kSkip) {
      alerts_.Quiet(Kind::kStale, name, pair.session);  // It may be off for ever.
      continue;
    }
    // A process that has never seen the repository knows no age: it tells that (NoticeTurn), and leaves what was told of the
    // machines as it is.
    if (!pair.freshness.asked() && pair.freshness.good() == absl::InfinitePast()) continue;
    if (pair.freshness.Age(now) > pair.max_age) {
      pair.stale = true;
      alerts_.Raise(
          {.kind = Kind::kStale,
           .schedule = name,
           .session = pair.session,
           .at = now,
           .message = absl::StrCat(pair.session, " has had no good snapshot for ",
                                   ShortDuration(pair.freshness.Age(now)), off ? ", and does not run" : "",
                                   "; at most ", ShortDuration(pair.max_age), " are allowed by schedule ", name)});
    } else if (!pair.stale) {
      continue;
    } else if (now - pair.freshness.good() <= pair.max_age) {
      pair.stale = false;
      alerts_.Clear(Kind::kStale, name, pair.session, now, absl::StrCat(pair.session, " has a fresh snapshot again"));
    } else {
      // Somebody changed the rules. That mends nothing, and nobody is told that it did.
      alerts_.Quiet(Kind::kStale, name, pair.session);
    }
  }
}

void Scheduler::NoticeTurn(const absl::Status& turn, absl::Time now) {
  if (trouble_) return;  // Somebody else's, of which our turns prove nothing.
  if (turn.ok() && looking_ && !somebody_works_) {
    // Nothing waits just now; that anybody works again is not proven.
    alerts_.Quiet(Kind::kScheduler, "", "");
    return;
  }
  if (turn.ok()) {
    failing_since_.reset();
    alerts_.Clear(Kind::kScheduler, "", "", now, "the schedules are worked on again");
    return;
  }
  const absl::Duration time = clock_.Monotonic();
  if (!failing_since_.has_value()) failing_since_ = time;
  if (time - *failing_since_ < options_.failing_after) return;
  alerts_.Raise({.kind = Kind::kScheduler,
                 .schedule = "",
                 .session = "",
                 .at = now,
                 .message = absl::StrCat("the schedules cannot be worked on: ", turn.message())});
}

void Scheduler::RaiseTrouble(const std::string& message) {
  trouble_ = true;
  alerts_.Raise({.kind = Kind::kScheduler, .schedule = "", .session = "", .at = clock_.Now(), .message = message});
}

bool Scheduler::Telling() {
  if (absl::Status kept = alerts_.Work(clock_.Now()); !kept.ok()) {
    LogWarning("the book does not take what was told", {{"error", kept.ToString()}});
  }
  return alerts_.Pending();
}

void Scheduler::LookForDropouts(absl::Time now) {
  for (const auto& [name, why] : unusable_) {
    alerts_.Raise({.kind = Kind::kUnusable,
                   .schedule = name,
                   .session = "",
                   .at = now,
                   .message = absl::StrCat("schedule ", name, " cannot be used: ", why)});
  }
  for (const Schedule& schedule : schedules_) {
    if (unusable_.count(schedule.name()) != 0) continue;
    alerts_.Clear(Kind::kUnusable, schedule.name(), "", now, absl::StrCat("schedule ", schedule.name(), " is back"));
  }
  for (const SessionState& session : sessions_) {
    const bool named = NamedByCapture(session.name);
    const auto clear = [&](Kind kind, absl::string_view how) {
      // No sentence is made of each machine in each look.
      if (!alerts_.Raised(kind, "", session.name)) return;
      alerts_.Clear(kind, "", session.name, now, absl::StrCat(session.name, how));
    };
    if (named && !session.unreadable.empty()) {
      alerts_.Raise({.kind = Kind::kUnreadable,
                     .schedule = "",
                     .session = session.name,
                     .at = now,
                     .message = absl::StrCat("session ", session.name, " cannot be read: ", session.unreadable)});
    } else if (session.unreadable.empty()) {
      clear(Kind::kUnreadable, " can be read again");
    }
    if (named && !session.ended.empty()) {
      alerts_.Raise({.kind = Kind::kEnded,
                     .schedule = "",
                     .session = session.name,
                     .at = now,
                     .message = absl::StrCat(session.name, " has ended, and nobody stopped it: ", session.ended)});
    } else if (session.ended.empty() && session.unreadable.empty()) {  // Else nobody knows.
      clear(Kind::kEnded, " runs again, or was stopped");
    }
    // Also of one that nothing protects: its guest stands still.
    if (!session.held.empty()) {
      alerts_.Raise({.kind = Kind::kHeld,
                     .schedule = "",
                     .session = session.name,
                     .at = now,
                     .message = absl::StrCat(session.name, ": ", session.held)});
    } else if (session.unreadable.empty()) {
      clear(Kind::kHeld, " goes on");
    }
    LookForRestarts(session, now);
  }
  std::set<absl::string_view> there;
  for (const SessionState& session : sessions_) there.insert(session.name);
  loops_.KeepOnly([&there](const std::string& session) { return there.count(session) != 0; });
  LookForUnmatched(now);
  LookForLost(now);
  LookForGone(now);
  QuietPaused();
}

void Scheduler::LookForRestarts(const SessionState& session, absl::Time now) {
  if (!session.running || !session.ended.empty()) {
    alerts_.Quiet(Kind::kRestarting, "", session.name);  // Nor does it work: that it does is told when it is proven.
    return;
  }
  if (!session.resets.has_value()) return;
  switch (loops_.Look(session.name, *session.resets, now)) {
    case RestartLoops::Verdict::kUnknown:
      break;
    case RestartLoops::Verdict::kLoops:
      if (!NamedByCapture(session.name)) break;
      alerts_.Raise(
          {.kind = Kind::kRestarting,
           .schedule = "",
           .session = session.name,
           .at = now,
           .message = absl::StrCat(session.name, " restarts again and again: more than ", RestartLoops::kMostWithin,
                                   " times within ", ShortDuration(RestartLoops::kWindow), ", ", *session.resets,
                                   " since it was started; `still logs ", session.name, "` says more")});
      break;
    case RestartLoops::Verdict::kCalm:
      alerts_.Clear(Kind::kRestarting, "", session.name, now, absl::StrCat(session.name, " does not restart any more"));
      break;
  }
}

// Nobody repeats daily what somebody knows who has paused it.
void Scheduler::QuietPaused() {
  for (const Schedule& schedule : schedules_) {
    if (!schedule.definition.paused() || unusable_.count(schedule.name()) != 0) continue;
    for (const auto& [key, pair] : pairs_) {
      if (key.first != schedule.name()) continue;
      for (Kind kind : {Kind::kFailed, Kind::kStale, Kind::kLevel}) alerts_.Quiet(kind, key.first, key.second);
    }
    for (const std::string& pattern : schedule.definition.sessions()) {
      alerts_.Quiet(Kind::kUnmatched, schedule.name(), pattern);
    }
  }
}

void Scheduler::LookForUnmatched(absl::Time now) {
  std::map<PairKey, absl::Duration> unmatched;
  for (const Schedule& schedule : schedules_) {
    if (!schedule.per_session() || schedule.definition.paused()) continue;
    for (const std::string& pattern : schedule.definition.sessions()) {
      const bool fits = std::any_of(sessions_.begin(), sessions_.end(),
                                    [&](const SessionState& session) { return MatchesPattern(session.name, pattern); });
      const PairKey key{schedule.name(), pattern};
      if (fits) {
        alerts_.Clear(Kind::kUnmatched, schedule.name(), pattern, now,
                      absl::StrCat("\"", pattern, "\" of schedule ", schedule.name(), " fits a session again"));
        continue;
      }
      auto known = unmatched_.find(key);
      unmatched[key] = known == unmatched_.end() ? clock_.Monotonic() : known->second;
      // Who has only just begun, as each process of a timer has, knows but how long the schedule has been so.
      if (!looked_for_unmatched_) {
        unmatched[key] -= std::clamp(now - schedule.counted_from, absl::ZeroDuration(), options_.unmatched_after);
      }
      if (clock_.Monotonic() - unmatched[key] < options_.unmatched_after) continue;
      alerts_.Raise({.kind = Kind::kUnmatched,
                     .schedule = schedule.name(),
                     .session = pattern,
                     .at = now,
                     .message = absl::StrCat("\"", pattern, "\" of schedule ", schedule.name(), " fits no session")});
    }
  }
  unmatched_ = std::move(unmatched);
  looked_for_unmatched_ = true;
}

// The book says when somebody has removed one, so it is asked as long as there are any.
void Scheduler::LookForLost(absl::Time now) {
  if (lost_.empty()) return;
  if (absl::StatusOr<std::map<std::string, std::string>> remembered = book_.Remembered(); remembered.ok()) {
    lost_ = ParseLost(*remembered);
  }
  for (const auto& entry : lost_) {
    const std::string& name = entry.first;
    const bool back =
        unusable_.count(name) != 0 ||
        std::any_of(schedules_.begin(), schedules_.end(), [&](const Schedule& one) { return one.name() == name; });
    if (back) {
      alerts_.Clear(Kind::kLost, name, "", now, absl::StrCat("schedule ", name, " is there again"));
      // Whoever removes it after that means it. What is not written down now is by the next look.
      if (absl::Status known = book_.Remember(LostKey(name), ""); !known.ok()) {
        LogWarning("the book does not take that a schedule is back", {{"error", known.ToString()}});
      }
      continue;
    }
    alerts_.Raise({.kind = Kind::kLost,
                   .schedule = name,
                   .session = "",
                   .at = now,
                   .message = absl::StrCat("schedule ", name, " took snapshots of this host until ",
                                           absl::FormatTime("%Y-%m-%d", entry.second, absl::UTCTimeZone()),
                                           ", and the book is new and does not have it: add it again, or `still "
                                           "schedule rm ",
                                           name, "` if it is not wanted")});
  }
}

// A machine whose session is there no more, of a schedule that would still fit it. It is told once. One that only a pattern fitted is then forgotten, because most
// were removed on purpose; one that the schedule calls by its name gets stale.
void Scheduler::LookForGone(absl::Time now) {
  for (auto at = memories_.begin(); at != memories_.end();) {
    const std::string& schedule = at->first.first;
    const std::string& session = at->first.second;
    if (unusable_.count(schedule) != 0) {  // Nobody knows what it fits.
      ++at;
      continue;
    }
    const bool known = std::any_of(schedules_.begin(), schedules_.end(), [&](const Schedule& one) {
      return one.name() == schedule && one.per_session() && one.Fits(session);
    });
    const auto pair = pairs_.find(at->first);
    const bool named = pair != pairs_.end();
    if (named && (pair->second.exists || !at->second.was_there)) {
      alerts_.Clear(Kind::kGone, schedule, session, now, absl::StrCat(session, " is back"));
      ++at;
      continue;
    }
    if (named || (known && !alerts_.Delivered(Kind::kGone, schedule, session))) {
      alerts_.Raise({.kind = Kind::kGone,
                     .schedule = schedule,
                     .session = session,
                     .at = now,
                     .message = absl::StrCat("the session ", session, " of schedule ", schedule,
                                             " is there no more; its snapshots stay")});
      ++at;
      continue;
    }
    unsaved_.insert(at->first);
    at = memories_.erase(at);
  }
}

bool Scheduler::NamedByCapture(const std::string& session) const {
  return std::any_of(schedules_.begin(), schedules_.end(),
                     [&](const Schedule& schedule) { return schedule.captures() && schedule.Fits(session); });
}

bool Scheduler::StillWanted(const Event& event) const {
  const auto schedule_named = [&](const std::string& name) {
    return std::any_of(schedules_.begin(), schedules_.end(), [&](const Schedule& one) { return one.name() == name; });
  };
  if (unusable_.count(event.schedule) != 0) return true;
  const auto find = [&] { return pairs_.find({event.schedule, event.session}); };
  switch (event.kind) {
    case Kind::kFailed:
      return find() != pairs_.end();
    case Kind::kStale:
    case Kind::kLevel:
      return find() != pairs_.end() && find()->second.schedule->captures();
    case Kind::kUnusable:
      return schedule_named(event.schedule);
    case Kind::kUnmatched:
      return std::any_of(schedules_.begin(), schedules_.end(), [&](const Schedule& one) {
        const auto& patterns = one.definition.sessions();
        return one.name() == event.schedule &&
               std::find(patterns.begin(), patterns.end(), event.session) != patterns.end();
      });
    case Kind::kGone:
      return memories_.count({event.schedule, event.session}) != 0;
    case Kind::kUnreadable:
    case Kind::kEnded:
    case Kind::kRestarting:
      // Whoever took its name out of the schedules asked not to be told: neither that it lasts nor that it is over.
      return std::any_of(sessions_.begin(), sessions_.end(), [&](const SessionState& one) {
        return one.name == event.session && NamedByCapture(one.name);
      });
    case Kind::kHeld:
      return std::any_of(sessions_.begin(), sessions_.end(),
                         [&](const SessionState& one) { return one.name == event.session; });
    case Kind::kScheduler:
      return true;
    case Kind::kLost:
      return schedule_named(event.schedule) || lost_.count(event.schedule) != 0;
    case Kind::kRecovered:
    case Kind::kTest:
      break;  // No alert is of these kinds.
  }
  return false;
}

std::vector<Cover> Scheduler::Coverage() const {
  std::map<absl::string_view, std::vector<std::pair<absl::string_view, const Pair*>>> by_session;
  for (const auto& [key, pair] : pairs_) {
    if (!pair.schedule->captures() || pair.schedule->definition.paused()) continue;
    by_session[pair.session].emplace_back(key.first, &pair);
  }
  std::vector<Cover> covers;
  for (const SessionState& session : sessions_) {
    const size_t before = covers.size();
    for (const auto& [schedule, known] : by_session[session.name]) {
      const Pair& pair = *known;
      Cover cover{.session = session,
                  .schedule = std::string(schedule),
                  .promised = Promised(pair),
                  .newest_level = pair.newest_level,
                  .max_age = pair.max_age,
                  .stale = pair.stale};
      if (pair.freshness.good() != absl::InfinitePast()) cover.newest = pair.freshness.good();
      covers.push_back(std::move(cover));
    }
    if (covers.size() == before) covers.push_back({.session = session});
  }
  return covers;
}

}  // namespace still::schedule
