#include "schedule/timing.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace still::schedule {
namespace {

constexpr absl::string_view kShortWeekdays[] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};
constexpr int kMinutesInDay = 24 * 60;
// How many occurrences LongestGap() looks at: two months of a daily schedule show a weekend, a month's end and holidays
// that people write into calendars; yearly ones show their year.
constexpr int kGapsLookedAt = 64;

// A share of 1 that depends on the words alone (FNV-1a, then the finisher of SplitMix64). Not for secrets.
double StableShare(absl::string_view a, absl::string_view b, int64_t c) {
  uint64_t hash = 14695981039346656037u;
  auto mix = [&](absl::string_view bytes) {
    for (char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 1099511628211u;
    hash = (hash ^ 0xff) * 1099511628211u;
  };
  mix(a);
  mix(b);
  mix(absl::StrCat(c));
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebu;
  hash ^= hash >> 31;
  return static_cast<double>(hash >> 11) * 0x1.0p-53;
}

std::optional<int> WeekdayOf(absl::string_view text) {
  for (int day = 0; day < 7; ++day) {
    if (absl::EqualsIgnoreCase(text, kShortWeekdays[day])) return day;
  }
  return std::nullopt;
}

// "08:30" as minutes of the day; 24:00 is its end.
std::optional<int> MinuteOf(absl::string_view text) {
  if (text.size() != 5 || text[2] != ':') return std::nullopt;
  for (size_t at : {size_t{0}, size_t{1}, size_t{3}, size_t{4}}) {
    if (!absl::ascii_isdigit(text[at])) return std::nullopt;
  }
  int minute = ((text[0] - '0') * 10 + text[1] - '0') * 60 + (text[3] - '0') * 10 + text[4] - '0';
  if (text[3] > '5' || minute > kMinutesInDay) return std::nullopt;
  return minute;
}

absl::Time MinuteOfDay(absl::CivilDay day, int minute, absl::TimeZone zone) {
  return absl::FromCivil(absl::CivilSecond(day) + minute * 60, zone);
}

}  // namespace

absl::StatusOr<Blackout> Blackout::Parse(absl::string_view text) {
  Blackout blackout;
  blackout.text_ = std::string(text);
  const auto wrong = absl::InvalidArgumentError(
      absl::StrCat("blackout window \"", text, "\": write it like \"Mon..Fri 08:00-18:00\" or \"22:00-06:00\""));
  std::vector<absl::string_view> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
  if (words.empty() || words.size() > 2) return wrong;
  if (words.size() == 2) {
    std::fill(std::begin(blackout.weekdays_), std::end(blackout.weekdays_), false);
    for (absl::string_view part : absl::StrSplit(words[0], ',')) {
      std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(part, absl::MaxSplits("..", 1));
      std::optional<int> first = WeekdayOf(ends.first);
      std::optional<int> last = absl::StrContains(part, "..") ? WeekdayOf(ends.second) : first;
      if (!first.has_value() || !last.has_value()) return wrong;
      for (int day = *first;; day = (day + 1) % 7) {
        blackout.weekdays_[day] = true;
        if (day == *last) break;
      }
    }
  }
  std::pair<absl::string_view, absl::string_view> times = absl::StrSplit(words.back(), absl::MaxSplits('-', 1));
  std::optional<int> from = MinuteOf(times.first);
  std::optional<int> to = MinuteOf(times.second);
  if (!from.has_value() || !to.has_value() || *from == kMinutesInDay || *from == *to) return wrong;
  blackout.from_minute_ = *from;
  blackout.to_minute_ = *to;
  return blackout;
}

std::optional<absl::Time> Blackout::Until(absl::Time now, absl::TimeZone zone) const {
  const absl::CivilDay today = absl::ToCivilDay(now, zone);
  // One that began yesterday may last until today.
  for (absl::CivilDay day : {today - 1, today}) {
    if (!weekdays_[static_cast<int>(absl::GetWeekday(day))]) continue;
    absl::Time begin = MinuteOfDay(day, from_minute_, zone);
    absl::Time end = MinuteOfDay(to_minute_ > from_minute_ ? day : day + 1, to_minute_, zone);
    if (begin <= now && now < end) return end;
  }
  return std::nullopt;
}

std::optional<absl::Time> Timing::Next(absl::Time after) const {
  if (every > absl::ZeroDuration()) {
    absl::Duration into;
    int64_t periods = absl::IDivDuration(after - absl::UnixEpoch(), every, &into);
    return absl::UnixEpoch() + (periods + 1) * every;
  }
  std::optional<absl::Time> next;
  for (const CalendarExpression& expression : calendar) {
    std::optional<absl::Time> candidate = expression.Next(after, zone);
    if (candidate.has_value() && (!next.has_value() || *candidate < *next)) next = candidate;
  }
  return next;
}

absl::Duration Timing::Delay(absl::string_view schedule, absl::string_view session, absl::Time planned) const {
  absl::Duration delay;
  if (spread > absl::ZeroDuration()) delay += spread * StableShare(schedule, session, 0);
  if (jitter > absl::ZeroDuration()) delay += jitter * StableShare(schedule, session, absl::ToUnixSeconds(planned));
  return delay;
}

std::optional<absl::Time> Timing::BlackedOutUntil(absl::Time now) const {
  std::optional<absl::Time> until;
  for (const Blackout& blackout : blackouts) {
    std::optional<absl::Time> end = blackout.Until(now, zone);
    if (end.has_value() && (!until.has_value() || *end > *until)) until = end;
  }
  return until;
}

absl::Duration Timing::LongestGap(absl::Time from) const {
  absl::Duration longest;
  std::optional<absl::Time> at = Next(from);
  for (int gap = 0; gap < kGapsLookedAt && at.has_value(); ++gap) {
    std::optional<absl::Time> next = Next(*at);
    if (!next.has_value()) break;
    absl::Time begun = BlackedOutUntil(*next).value_or(*next);
    longest = std::max(longest, begun - *at);
    at = next;
  }
  return longest + jitter + spread;
}

}  // namespace still::schedule
