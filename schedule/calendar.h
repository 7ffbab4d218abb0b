// CalendarExpression: when something happens again and again, in the grammar of systemd's OnCalendar= (systemd.time(7),
// "Calendar Events"): "daily", "Mon..Fri 02:00", "*-*-1..7 04:30:00 Europe/Berlin", "*:0/15". Pure: reads no clock.
//
// The meaning is systemd's too, also on the days that change between winter and summer time: a time of day that does not
// exist there is left out, and one that comes twice happens the first time. tests/unit/schedule compares the two.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::schedule {

class CalendarExpression {
 public:
  // INVALID_ARGUMENT says what of it cannot be understood.
  static absl::StatusOr<CalendarExpression> Parse(absl::string_view text);

  // The first time after `after`; nullopt: never again (before the year 2200). `zone`: when the expression names none.
  std::optional<absl::Time> Next(absl::Time after, absl::TimeZone zone) const;
  // As it was given.
  const std::string& text() const { return text_; }

  // start, start + repeat, start + 2 * repeat, ... up to stop; without a repeat only start.
  struct Range {
    int64_t start = 0;
    int64_t stop = -1;  // -1: the unit's end.
    int64_t repeat = 0;
  };
  using Component = std::vector<Range>;  // Empty: any.

 private:
  friend class CalendarParser;
  // The year, month, day, hour, minute and microsecond of a wall clock.
  using Fields = std::array<int64_t, 6>;
  // Moves `fields` to the first wall clock time at or after it that matches. False: there is none.
  bool Advance(Fields& fields) const;
  bool AdvanceDay(Fields& fields) const;
  bool AdvanceTimeOfDay(Fields& fields) const;

  std::string text_;
  uint32_t weekdays_ = 0x7f;  // Bit 0: Monday.
  std::array<Component, 6> components_;
  bool from_end_of_month_ = false;
  std::optional<absl::TimeZone> zone_;
};

}  // namespace still::schedule
