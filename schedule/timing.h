// Timing: when a schedule's runs are due for one session, in all its parts: calendar expressions or an interval, a time
// zone, jitter and spread, blackout windows. Pure: reads no clock, and the same question always has the same answer, also
// after a restart, so that nothing about it needs to be stored.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/civil_time.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "schedule/calendar.h"

namespace still::schedule {

// "Mon..Fri 08:00-18:00", "22:00-06:00" (over midnight; the weekdays are those it begins on): when nothing is begun.
class Blackout {
 public:
  static absl::StatusOr<Blackout> Parse(absl::string_view text);
  // The end of the window that `now` lies in.
  std::optional<absl::Time> Until(absl::Time now, absl::TimeZone zone) const;
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  bool weekdays_[7] = {true, true, true, true, true, true, true};  // From Monday.
  int from_minute_ = 0;                                            // Of the day.
  int to_minute_ = 0;
};

enum class MissedPolicy { kRunOnce, kSkip };

struct Timing {
  std::vector<CalendarExpression> calendar;  // The next of any.
  // Instead of a calendar: at the multiples of it since 1970 (UTC).
  absl::Duration every;
  absl::TimeZone zone;  // Where an expression names none, and for blackouts.
  // Each run is later by a random share of `jitter`, each session by its own random share of `spread`.
  absl::Duration jitter;
  absl::Duration spread;
  std::vector<Blackout> blackouts;
  MissedPolicy missed = MissedPolicy::kRunOnce;

  // The first occurrence after `after`, before jitter and spread; nullopt: never.
  std::optional<absl::Time> Next(absl::Time after) const;
  // How much later than planned the run of `session` is due; less than jitter + spread.
  absl::Duration Delay(absl::string_view schedule, absl::string_view session, absl::Time planned) const;
  std::optional<absl::Time> BlackedOutUntil(absl::Time now) const;
  // The longest time between two of the next occurrences, with their delays: what to expect when all goes well.
  absl::Duration LongestGap(absl::Time from) const;
};

}  // namespace still::schedule
