// CalendarExpression::Parse: systemd.time(7), "Calendar Events".
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/civil_time.h"
#include "schedule/calendar.h"

namespace still::schedule {
namespace {

using Component = CalendarExpression::Component;
using Range = CalendarExpression::Range;

// An expression is typed by a person: longer ones are a mistake, and each range costs time whenever it is evaluated.
constexpr size_t kMaxLength = 1024;
constexpr int64_t kMaxNumber = 2'147'483'647;
constexpr int64_t kSecond = 1'000'000;

struct Shorthand {
  absl::string_view word;
  absl::string_view means;
};
constexpr Shorthand kShorthands[] = {
    {"minutely", "*-*-* *:*:00"},
    {"hourly", "*-*-* *:00:00"},
    {"daily", "*-*-* 00:00:00"},
    {"weekly", "Mon *-*-* 00:00:00"},
    {"monthly", "*-*-01 00:00:00"},
    {"quarterly", "*-01,04,07,10-01 00:00:00"},
    {"yearly", "*-01-01 00:00:00"},
    {"annually", "*-01-01 00:00:00"},
    {"biannually", "*-01,07-01 00:00:00"},
    {"bi-annually", "*-01,07-01 00:00:00"},
    {"semiannually", "*-01,07-01 00:00:00"},
    {"semi-annually", "*-01,07-01 00:00:00"},
};
constexpr absl::string_view kWeekdays[] = {"Monday", "Tuesday",  "Wednesday", "Thursday",
                                           "Friday", "Saturday", "Sunday"};

struct UnitBounds {
  absl::string_view name;
  int64_t first;
  int64_t last;
};
constexpr UnitBounds kBounds[] = {{"year", 1970, 2199}, {"month", 1, 12},  {"day", 1, 31},
                                  {"hour", 0, 23},      {"minute", 0, 59}, {"second", 0, 60 * kSecond - 1}};

// As systemd has it: a range ends with its last repetition, and one without any is its start alone.
Range Normalized(Range range) {
  if (range.stop > range.start && range.repeat > 0) range.stop -= (range.stop - range.start) % range.repeat;
  if (range.stop == range.start) return {.start = range.start};
  return range;
}

bool IsDigit(absl::string_view text) { return !text.empty() && absl::ascii_isdigit(text[0]); }

}  // namespace

class CalendarParser {
 public:
  explicit CalendarParser(absl::string_view text) : whole_(text), rest_(text) {}

  absl::StatusOr<CalendarExpression> Parse() {
    if (whole_.empty() || whole_.size() > kMaxLength) return Wrong("it is empty or too long");
    result_.text_ = std::string(whole_);
    TakeZone();
    for (const Shorthand& shorthand : kShorthands) {
      if (absl::EqualsIgnoreCase(rest_, shorthand.word)) rest_ = shorthand.means;
    }
    if (rest_.empty()) return Wrong("it has no time");
    STILL_RETURN_IF_ERROR(ParseWeekdays());
    STILL_RETURN_IF_ERROR(ParseDate());
    STILL_RETURN_IF_ERROR(ParseTime());
    if (!rest_.empty()) return Wrong(absl::StrCat("\"", rest_, "\" is too much"));
    STILL_RETURN_IF_ERROR(CheckBounds());
    return std::move(result_);
  }

 private:
  absl::Status Wrong(absl::string_view why) const {
    return absl::InvalidArgumentError(
        absl::StrCat("calendar expression \"", whole_.substr(0, kMaxLength), "\": ", why, " (see systemd.time(7))"));
  }
  bool Take(absl::string_view what) {
    if (!absl::StartsWith(rest_, what)) return false;
    rest_.remove_prefix(what.size());
    return true;
  }
  void SkipBlanks() {
    while (Take(" ")) continue;
  }

  // The last word, when it names a time zone.
  void TakeZone() {
    size_t blank = rest_.rfind(' ');
    if (blank == absl::string_view::npos || blank + 1 == rest_.size()) return;
    std::string name(rest_.substr(blank + 1));
    absl::TimeZone zone;
    // A weekday or a date is no zone; "UTC" and "Europe/Berlin" begin with a letter.
    if (!absl::ascii_isalpha(name[0]) || !absl::LoadTimeZone(name, &zone)) return;
    result_.zone_ = zone;
    rest_ = rest_.substr(0, blank);
  }

  std::optional<int> TakeWeekday() {
    for (int day = 0; day < 7; ++day) {
      for (absl::string_view name : {kWeekdays[day], kWeekdays[day].substr(0, 3)}) {
        if (!absl::StartsWithIgnoreCase(rest_, name)) continue;
        absl::string_view after = rest_.substr(name.size());
        if (!after.empty() && after[0] != ',' && after[0] != ' ' && after[0] != '-' && !absl::StartsWith(after, "..")) {
          continue;
        }
        rest_ = after;
        return day;
      }
    }
    return std::nullopt;
  }

  absl::Status ParseWeekdays() {
    uint32_t days = 0;
    for (;;) {
      std::optional<int> first = TakeWeekday();
      if (!first.has_value()) {
        if (days != 0) return Wrong(absl::StrCat("\"", rest_, "\" is no weekday"));
        return absl::OkStatus();
      }
      int last = *first;
      if (Take("..") || Take("-")) {
        std::optional<int> end = TakeWeekday();
        if (!end.has_value() || *end < *first) return Wrong("a range of weekdays ends before it begins");
        last = *end;
      }
      for (int day = *first; day <= last; ++day) days |= 1u << day;
      // A comma at the end is allowed.
      Take(",");
      if (rest_.empty() || rest_[0] == ' ') break;
    }
    SkipBlanks();
    result_.weekdays_ = days;
    return absl::OkStatus();
  }

  absl::StatusOr<int64_t> ParseNumber(bool seconds) {
    if (!IsDigit(rest_)) return Wrong(absl::StrCat("a number was expected before \"", rest_, "\""));
    int64_t value = 0;
    for (; IsDigit(rest_); rest_.remove_prefix(1)) {
      value = value * 10 + (rest_[0] - '0');
      if (value > kMaxNumber) return Wrong("a number is too large");
    }
    if (!seconds) return value;
    value *= kSecond;
    if (rest_.size() < 2 || rest_[0] != '.' || rest_[1] == '.') return value;
    rest_.remove_prefix(1);
    if (!IsDigit(rest_)) return Wrong("a fraction without digits");
    for (int64_t unit = kSecond / 10; IsDigit(rest_) && unit > 0; unit /= 10, rest_.remove_prefix(1)) {
      value += unit * (rest_[0] - '0');
    }
    // systemd rounds the seventh digit.
    if (IsDigit(rest_) && rest_[0] >= '5') ++value;
    while (IsDigit(rest_)) rest_.remove_prefix(1);
    return value;
  }

  absl::StatusOr<Component> ParseComponent(bool seconds) {
    const int64_t one = seconds ? kSecond : 1;
    if (Take("*")) {
      if (seconds) return Component{{.start = 0, .stop = -1, .repeat = kSecond}};
      return Component{};
    }
    Component component;
    do {
      Range range;
      STILL_ASSIGN_OR_RETURN(range.start, ParseNumber(seconds));
      if (Take("..")) {
        STILL_ASSIGN_OR_RETURN(range.stop, ParseNumber(seconds));
        range.repeat = one;
      }
      if (Take("/")) {
        STILL_ASSIGN_OR_RETURN(range.repeat, ParseNumber(seconds));
        if (range.repeat == 0) return Wrong("a repetition of 0");
      }
      component.push_back(Normalized(range));
    } while (Take(","));
    if (!rest_.empty() && rest_[0] != ' ' && rest_[0] != '-' && rest_[0] != '~' && rest_[0] != ':') {
      return Wrong(absl::StrCat("\"", rest_, "\" cannot stand there"));
    }
    return component;
  }

  absl::Status ParseDate() {
    if (rest_.empty()) return absl::OkStatus();
    if (Take("@")) return ParseTimestamp();
    const absl::string_view before = rest_;
    STILL_ASSIGN_OR_RETURN(Component first, ParseComponent(false));
    if (rest_.empty() || rest_[0] == ':') {  // A time, then.
      rest_ = before;
      return absl::OkStatus();
    }
    bool from_end = Take("~");
    if (!from_end && !Take("-")) return Wrong(absl::StrCat("\"", rest_, "\" is no date"));
    STILL_ASSIGN_OR_RETURN(Component second, ParseComponent(false));
    if (rest_.empty() || rest_[0] == ' ') {
      result_.components_[1] = std::move(first);
      result_.components_[2] = std::move(second);
    } else {
      if (from_end) return Wrong("only days can be counted from the end");
      from_end = Take("~");
      if (!from_end && !Take("-")) return Wrong(absl::StrCat("\"", rest_, "\" is no date"));
      STILL_ASSIGN_OR_RETURN(Component third, ParseComponent(false));
      if (!rest_.empty() && rest_[0] != ' ') return Wrong(absl::StrCat("\"", rest_, "\" is no day"));
      result_.components_[0] = std::move(first);
      result_.components_[1] = std::move(second);
      result_.components_[2] = std::move(third);
    }
    result_.from_end_of_month_ = from_end;
    SkipBlanks();
    return absl::OkStatus();
  }

  // "@1500000000": seconds since 1970.
  absl::Status ParseTimestamp() {
    int64_t seconds = 0;
    if (!IsDigit(rest_) || !absl::SimpleAtoi(rest_, &seconds)) return Wrong("a time stamp is a number of seconds");
    rest_ = {};
    const absl::TimeZone utc = absl::UTCTimeZone();
    const absl::CivilSecond civil = absl::ToCivilSecond(absl::FromUnixSeconds(seconds), utc);
    result_.zone_ = utc;
    const int64_t values[] = {civil.year(), civil.month(),  civil.day(),
                              civil.hour(), civil.minute(), civil.second() * kSecond};
    for (size_t field = 0; field < 6; ++field) result_.components_[field] = {{.start = values[field]}};
    timestamp_ = true;
    return absl::OkStatus();
  }

  absl::Status ParseTime() {
    if (timestamp_) return absl::OkStatus();
    if (rest_.empty()) {
      for (size_t field = 3; field < 6; ++field) result_.components_[field] = {{.start = 0}};
      return absl::OkStatus();
    }
    STILL_ASSIGN_OR_RETURN(result_.components_[3], ParseComponent(false));
    if (!Take(":")) return Wrong(absl::StrCat("minutes were expected at \"", rest_, "\""));
    STILL_ASSIGN_OR_RETURN(result_.components_[4], ParseComponent(false));
    if (rest_.empty()) {
      result_.components_[5] = {{.start = 0}};
      return absl::OkStatus();
    }
    if (!Take(":")) return Wrong(absl::StrCat("seconds were expected at \"", rest_, "\""));
    STILL_ASSIGN_OR_RETURN(result_.components_[5], ParseComponent(true));
    return absl::OkStatus();
  }

  absl::Status CheckBounds() {
    for (Range& year : result_.components_[0]) {
      for (int64_t* value : {&year.start, &year.stop}) {
        if (*value >= 0 && *value < 70) *value += 2000;
        if (*value >= 70 && *value < 100) *value += 1900;
      }
    }
    for (size_t field = 0; field < 6; ++field) {
      const UnitBounds& bounds = kBounds[field];
      for (const Range& range : result_.components_[field]) {
        bool good =
            range.start >= bounds.first && range.start <= bounds.last && range.repeat <= bounds.last - bounds.first;
        if (range.stop >= 0) {
          good = good && range.stop <= bounds.last && range.start + range.repeat <= range.stop;
        } else if (field == 2 && result_.from_end_of_month_) {
          good = good && range.start - range.repeat >= bounds.first;
        } else {
          good = good && range.start + range.repeat <= bounds.last;
        }
        if (!good) return Wrong(absl::StrCat("there is no such ", bounds.name));
      }
    }
    return absl::OkStatus();
  }

  const absl::string_view whole_;
  absl::string_view rest_;
  bool timestamp_ = false;
  CalendarExpression result_;
};

absl::StatusOr<CalendarExpression> CalendarExpression::Parse(absl::string_view text) {
  return CalendarParser(text).Parse();
}

}  // namespace still::schedule
