// Scheduler: whoever works on the schedules leaves a note of it in the book, and whoever only looks finds out from it, and
// from what is due, whether anybody does.
#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/quantity.h"
#include "schedule/scheduler.h"

namespace still::schedule {
namespace {

constexpr char kTurnKey[] = "turn";
constexpr absl::string_view kByDaemon = "daemon";
// Each note is a write that waits for the disk.
constexpr absl::Duration kNoteEvery = absl::Minutes(1);

struct TurnNote {
  absl::Time at;
  bool daemon = false;
};

// People want to know it to the minute.
std::string Rough(absl::Duration duration) { return ShortDuration(absl::Trunc(duration, absl::Minutes(1))); }

// "1764489600 daemon", or without the second word.
std::string Encode(const TurnNote& note) {
  return absl::StrCat(absl::ToUnixSeconds(note.at), note.daemon ? " " : "", note.daemon ? kByDaemon : "");
}

std::optional<TurnNote> Decode(const std::map<std::string, std::string>& remembered) {
  auto row = remembered.find(kTurnKey);
  if (row == remembered.end()) return std::nullopt;
  const std::pair<absl::string_view, absl::string_view> words = absl::StrSplit(row->second, absl::MaxSplits(' ', 1));
  int64_t seconds = 0;
  if (!absl::SimpleAtoi(words.first, &seconds)) return std::nullopt;
  return TurnNote{.at = absl::FromUnixSeconds(seconds), .daemon = words.second == kByDaemon};
}

}  // namespace

absl::Status Scheduler::NoteTurn(absl::Time now) {
  const absl::Duration time = clock_.Monotonic();
  if (time - noted_at_ < kNoteEvery) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(book_.Remember(kTurnKey, Encode({.at = now, .daemon = options_.daemon})));
  noted_at_ = time;
  return absl::OkStatus();
}

// What has been due for longest, of that which a turn would have begun or written down.
std::optional<Scheduler::Due> Scheduler::LongestDue(absl::Time now) {
  std::optional<Due> longest;
  for (Due due : FindDue(now)) {
    const Timing& timing = due.pair->schedule->timing;
    // It waits for an earlier run, or has only just been allowed to begin.
    if (busy_.count(due.pair->session) != 0) continue;
    if (timing.BlackedOutUntil(now - options_.tolerance).has_value()) continue;
    // Nobody could begin it before its machine was there.
    due.since = std::max(due.since, due.pair->memory.known);
    if (!longest.has_value() || due.since < longest->since) longest = due;
  }
  return longest;
}

absl::Status Scheduler::LookWhetherAnybodyWorks(absl::Time now) {
  somebody_works_ = false;
  if (trouble_) return absl::OkStatus();  // Whoever looks knows it already.
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  const std::optional<TurnNote> note = Decode(remembered);
  // One of the future is of a clock that was set back, and proves nothing.
  somebody_works_ = note.has_value() && absl::AbsDuration(now - note->at) <= kLongestTurn;
  // A host that has only just started has had no time to.
  if (somebody_works_ || clock_.Monotonic() < kLongestTurn) return absl::OkStatus();
  const std::string last = note.has_value()
                               ? absl::StrCat("; they were last worked on ", Rough(absl::AbsDuration(now - note->at)),
                                              note->at <= now ? " ago" : " from now, by the clock")
                               : "; they never were here";
  constexpr absl::string_view kNext = "; start stilld, or have a timer call `still schedule run-due`";
  const std::optional<Due> due = LongestDue(now);
  if (due.has_value() && now - due->since > options_.tolerance) {
    const std::string& session = due->pair->session;
    RaiseTrouble(absl::StrCat("nobody works on the schedules: ", due->pair->schedule->name(),
                              session.empty() ? "" : " of ", session, " has been due for ", Rough(now - due->since),
                              last, kNext));
    return absl::OkStatus();
  }
  // A timer may come as seldom as it likes, as long as nothing waits for it. stilld is always there.
  const bool planned = std::any_of(schedules_.begin(), schedules_.end(),
                                   [](const Schedule& schedule) { return !schedule.definition.paused(); });
  if (planned && note.has_value() && note->daemon) {
    RaiseTrouble(absl::StrCat("nobody works on the schedules: stilld does not run", last, kNext));
  }
  return absl::OkStatus();
}

}  // namespace still::schedule
