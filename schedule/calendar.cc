// CalendarExpression: from an expression to times. calendar_parser.cc reads expressions.
#include "schedule/calendar.h"

#include <algorithm>

#include "absl/time/civil_time.h"

namespace still::schedule {
namespace {

enum Field { kYear, kMonth, kDay, kHour, kMinute, kMicrosecond };
// systemd's bounds (calendarspec.c, MAX_YEAR); nothing is looked for beyond.
constexpr int64_t kLastYear = 2199;
constexpr int64_t kMicrosecondsInMinute = 60'000'000;

int64_t DaysInMonth(int64_t year, int64_t month) {
  return absl::CivilDay(absl::CivilMonth(year, static_cast<int>(month)) + 1) -
         absl::CivilDay(year, static_cast<int>(month), 1);
}

// The smallest value of the component that is at least `from`; nullopt: none.
std::optional<int64_t> FirstAtLeast(const CalendarExpression::Component& component, int64_t from) {
  if (component.empty()) return from;
  std::optional<int64_t> best;
  for (const CalendarExpression::Range& range : component) {
    int64_t value = range.start;
    if (value < from) {
      if (range.repeat == 0) continue;
      value += (from - value + range.repeat - 1) / range.repeat * range.repeat;
      if (range.stop >= 0 && value > range.stop) continue;
    }
    if (!best.has_value() || value < *best) best = value;
  }
  return best;
}

// Days counted from the end of the month ("~1" is its last) as days of this month. Those that it does not have are
// left out.
CalendarExpression::Component CountFromEnd(const CalendarExpression::Component& days, int64_t last) {
  CalendarExpression::Component counted;
  for (CalendarExpression::Range range : days) {
    range.start = last + 1 - range.start;
    if (range.stop >= 0) {
      range.stop = last + 1 - range.stop;
      std::swap(range.start, range.stop);
    }
    if (range.start < 1 && range.repeat > 0 && range.stop >= 1) {
      range.start += (1 - range.start + range.repeat - 1) / range.repeat * range.repeat;
    }
    if (range.start >= 1) counted.push_back(range);
  }
  return counted;
}

}  // namespace

// `fields` at the first matching day at or after its own, at midnight if that is a later one.
bool CalendarExpression::AdvanceDay(Fields& fields) const {
  const Fields given = fields;
  for (;;) {
    std::optional<int64_t> year = FirstAtLeast(components_[kYear], fields[kYear]);
    if (!year.has_value() || *year > kLastYear) return false;
    if (*year != fields[kYear]) fields = {*year, 1, 1, 0, 0, 0};
    std::optional<int64_t> month = FirstAtLeast(components_[kMonth], fields[kMonth]);
    if (!month.has_value() || *month > 12) {
      fields = {fields[kYear] + 1, 1, 1, 0, 0, 0};
      continue;
    }
    if (*month != fields[kMonth]) fields = {fields[kYear], *month, 1, 0, 0, 0};
    const int64_t last = DaysInMonth(fields[kYear], fields[kMonth]);
    std::optional<int64_t> day;
    if (from_end_of_month_ && !components_[kDay].empty()) {
      const Component days = CountFromEnd(components_[kDay], last);
      if (!days.empty()) day = FirstAtLeast(days, fields[kDay]);
    } else {
      day = FirstAtLeast(components_[kDay], fields[kDay]);
    }
    if (!day.has_value() || *day > last) {
      absl::CivilMonth next = absl::CivilMonth(fields[kYear], static_cast<int>(fields[kMonth])) + 1;
      fields = {next.year(), next.month(), 1, 0, 0, 0};
      continue;
    }
    fields[kDay] = *day;
    absl::CivilDay civil(fields[kYear], static_cast<int>(fields[kMonth]), static_cast<int>(*day));
    if ((weekdays_ >> static_cast<int>(absl::GetWeekday(civil)) & 1) != 0) {
      if (*day != given[kDay] || fields[kMonth] != given[kMonth] || fields[kYear] != given[kYear]) {
        fields[kHour] = fields[kMinute] = fields[kMicrosecond] = 0;
      }
      return true;
    }
    ++civil;
    fields = {civil.year(), civil.month(), civil.day(), 0, 0, 0};
  }
}

// False: not on this day any more.
bool CalendarExpression::AdvanceTimeOfDay(Fields& fields) const {
  for (;;) {
    std::optional<int64_t> hour = FirstAtLeast(components_[kHour], fields[kHour]);
    if (!hour.has_value() || *hour > 23) return false;
    if (*hour != fields[kHour]) fields[kMinute] = fields[kMicrosecond] = 0;
    fields[kHour] = *hour;
    std::optional<int64_t> minute = FirstAtLeast(components_[kMinute], fields[kMinute]);
    if (!minute.has_value() || *minute > 59) {
      ++fields[kHour];
      fields[kMinute] = fields[kMicrosecond] = 0;
      continue;
    }
    if (*minute != fields[kMinute]) fields[kMicrosecond] = 0;
    fields[kMinute] = *minute;
    std::optional<int64_t> microsecond = FirstAtLeast(components_[kMicrosecond], fields[kMicrosecond]);
    if (!microsecond.has_value() || *microsecond >= kMicrosecondsInMinute) {
      ++fields[kMinute];
      fields[kMicrosecond] = 0;
      continue;
    }
    fields[kMicrosecond] = *microsecond;
    return true;
  }
}

bool CalendarExpression::Advance(Fields& fields) const {
  for (;;) {
    if (!AdvanceDay(fields)) return false;
    if (AdvanceTimeOfDay(fields)) return true;
    absl::CivilDay next(fields[kYear], static_cast<int>(fields[kMonth]), static_cast<int>(fields[kDay]));
    ++next;
    fields = {next.year(), next.month(), next.day(), 0, 0, 0};
  }
}

std::optional<absl::Time> CalendarExpression::Next(absl::Time after, absl::TimeZone zone) const {
  if (zone_.has_value()) zone = *zone_;
  auto fields_of = [&](absl::Time time) {
    absl::TimeZone::CivilInfo info = zone.At(time);
    return Fields{info.cs.year(),   info.cs.month(),
                  info.cs.day(),    info.cs.hour(),
                  info.cs.minute(), info.cs.second() * 1'000'000 + absl::ToInt64Microseconds(info.subsecond)};
  };
  Fields fields = fields_of(after);
  // Later than `after`, as far as the wall clock tells. A time that is carried over matches nothing by itself: the
  // component's bounds are looked at by Advance().
  ++fields[kMicrosecond];
  while (Advance(fields)) {
    const absl::CivilSecond civil(fields[kYear], static_cast<int>(fields[kMonth]), static_cast<int>(fields[kDay]),
                                  static_cast<int>(fields[kHour]), static_cast<int>(fields[kMinute]),
                                  static_cast<int>(fields[kMicrosecond] / 1'000'000));
    const absl::TimeZone::TimeInfo info = zone.At(civil);
    if (info.kind == absl::TimeZone::TimeInfo::SKIPPED) {
      fields = fields_of(info.trans);
      continue;
    }
    absl::Time time = info.pre + absl::Microseconds(fields[kMicrosecond] % 1'000'000);
    if (time > after) return time;
    ++fields[kMicrosecond];
  }
  return std::nullopt;
}

}  // namespace still::schedule
