#include "snapshot/retention.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/civil_time.h"
#include "base/quantity.h"

namespace still::snapshot {
namespace {

// The hour's begin with its distance from UTC, so that the two hours of a change to winter time differ.
std::string HourOf(absl::Time time, absl::TimeZone zone) { return absl::FormatTime("%Y-%m-%d %H:00%Ez", time, zone); }
std::string DayOf(absl::Time time, absl::TimeZone zone) { return absl::FormatTime("%Y-%m-%d", time, zone); }
std::string WeekOf(absl::Time time, absl::TimeZone zone) {
  absl::CivilDay day = absl::ToCivilDay(time, zone);
  if (absl::GetWeekday(day) != absl::Weekday::monday) day = absl::PrevWeekday(day, absl::Weekday::monday);
  return absl::StrCat("week of ", absl::FormatCivilTime(day));
}
std::string MonthOf(absl::Time time, absl::TimeZone zone) { return absl::FormatTime("%Y-%m", time, zone); }
std::string YearOf(absl::Time time, absl::TimeZone zone) { return absl::FormatTime("%Y", time, zone); }

struct PeriodRule {
  absl::string_view word;
  int RetentionPolicy::*count;
  // Names the period a time lies in. Periods follow one another without overlap.
  std::string (*period)(absl::Time time, absl::TimeZone zone);
};
constexpr PeriodRule kPeriodRules[] = {{"hourly", &RetentionPolicy::hourly, HourOf},
                                       {"daily", &RetentionPolicy::daily, DayOf},
                                       {"weekly", &RetentionPolicy::weekly, WeekOf},
                                       {"monthly", &RetentionPolicy::monthly, MonthOf},
                                       {"yearly", &RetentionPolicy::yearly, YearOf}};

constexpr size_t kShownIdDigits = 8;

absl::Status CheckPolicy(const RetentionPolicy& policy) {
  int largest = policy.last;
  int smallest = policy.last;
  for (const PeriodRule& rule : kPeriodRules) {
    largest = std::max(largest, policy.*rule.count);
    smallest = std::min(smallest, policy.*rule.count);
  }
  if (smallest < 0 || policy.minimum_age < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("retention: a negative number");
  }
  if (largest > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "retention: no rule with a number (last, hourly, daily, weekly, monthly, yearly); it would drop everything");
}

// One candidate while the rules are applied.
struct Entry {
  const RetentionCandidate* candidate;
  std::vector<std::string> kept_by;
  std::vector<std::string> not_kept_by;
};

std::string CountText(int count) { return count >= kKeepAll ? "all" : absl::StrCat(count); }

// Entries of one machine, newest first.
void ApplyLast(std::vector<Entry*>& newest_first, int count) {
  if (count == 0) return;
  for (size_t i = 0; i < newest_first.size(); ++i) {
    if (i < static_cast<size_t>(count)) {
      newest_first[i]->kept_by.push_back(absl::StrCat("last: number ", i + 1, " of ", CountText(count)));
    } else {
      newest_first[i]->not_kept_by.push_back(absl::StrCat("last: ", i, " are newer"));
    }
  }
}

void ApplyPeriods(std::vector<Entry*>& newest_first, const PeriodRule& rule, int count, absl::TimeZone zone) {
  if (count == 0) return;
  int periods = 0;
  std::string current;
  const Entry* newest = nullptr;
  for (Entry* entry : newest_first) {
    std::string period = rule.period(entry->candidate->point, zone);
    if (newest == nullptr || period != current) {
      current = std::move(period);
      newest = entry;
      ++periods;
      if (periods <= count) {
        entry->kept_by.push_back(
            absl::StrCat(rule.word, ": newest of ", current, ", number ", periods, " of ", CountText(count)));
        continue;
      }
    } else if (periods <= count) {
      entry->not_kept_by.push_back(
          absl::StrCat(rule.word, ": ", newest->candidate->id.substr(0, kShownIdDigits), " is newer in ", current));
      continue;
    }
    entry->not_kept_by.push_back(absl::StrCat(rule.word, ": ", count, " periods with snapshots are newer"));
  }
}

// The rules that look at one snapshot alone.
void ApplyLabelsAndAge(Entry& entry, const RetentionPolicy& policy, absl::Time now) {
  const RetentionCandidate& candidate = *entry.candidate;
  if (auto hold = candidate.labels.find(std::string(kHoldLabel)); hold != candidate.labels.end()) {
    entry.kept_by.push_back(hold->second.empty() ? "held" : absl::StrCat("held: ", hold->second));
  }
  if (!candidate.in_use.empty()) entry.kept_by.push_back(candidate.in_use);
  for (const auto& [key, value] : policy.labels) {
    auto label = candidate.labels.find(key);
    if (label == candidate.labels.end() || (!value.empty() && label->second != value)) continue;
    entry.kept_by.push_back(absl::StrCat("label ", key, "=", label->second));
  }
  if (candidate.point > now) {
    entry.kept_by.push_back("its point lies in the future");
  } else if (now - candidate.point < policy.minimum_age) {
    entry.kept_by.push_back(absl::StrCat("younger than ", absl::FormatDuration(policy.minimum_age)));
  }
}

absl::StatusOr<int> ParseCount(absl::string_view text) {
  int count;
  if (text == "all") return kKeepAll;
  if (absl::SimpleAtoi(text, &count) && count >= 0 && count < kKeepAll) return count;
  return absl::InvalidArgumentError("not a number and not \"all\"");
}

absl::Status ParseWord(absl::string_view word, RetentionPolicy& policy) {
  std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(word, absl::MaxSplits('=', 1));
  const auto& [key, value] = parts;
  if (key == "label") {
    std::pair<std::string, std::string> label = absl::StrSplit(value, absl::MaxSplits('=', 1));
    if (label.first.empty()) return absl::InvalidArgumentError("a label needs a key");
    policy.labels.push_back(std::move(label));
    return absl::OkStatus();
  }
  if (key == "min-age") {
    STILL_ASSIGN_OR_RETURN(policy.minimum_age, ParseDuration(value));
    return absl::OkStatus();
  }
  if (key == "last") {
    STILL_ASSIGN_OR_RETURN(policy.last, ParseCount(value));
    return absl::OkStatus();
  }
  for (const PeriodRule& rule : kPeriodRules) {
    if (key != rule.word) continue;
    STILL_ASSIGN_OR_RETURN(policy.*rule.count, ParseCount(value));
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError("no such rule");
}

}  // namespace

absl::StatusOr<RetentionPolicy> ParseRetention(absl::string_view text) {
  RetentionPolicy policy;
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" ,\t\n"), absl::SkipEmpty())) {
    STILL_RETURN_IF_ERROR(Annotate(ParseWord(word, policy), absl::StrCat("retention: \"", word, "\"")));
  }
  STILL_RETURN_IF_ERROR(CheckPolicy(policy));
  return policy;
}

std::string FormatRetention(const RetentionPolicy& policy) {
  std::vector<std::string> words;
  if (policy.last > 0) words.push_back(absl::StrCat("last=", CountText(policy.last)));
  for (const PeriodRule& rule : kPeriodRules) {
    if (policy.*rule.count > 0) words.push_back(absl::StrCat(rule.word, "=", CountText(policy.*rule.count)));
  }
  for (const auto& [key, value] : policy.labels) {
    words.push_back(absl::StrCat("label=", key, value.empty() ? "" : "=", value));
  }
  if (policy.minimum_age > absl::ZeroDuration()) {
    words.push_back(absl::StrCat("min-age=", absl::ToInt64Seconds(policy.minimum_age), "s"));
  }
  return absl::StrJoin(words, " ");
}

RetentionCandidate CandidateOf(const stillpoint::manifest::v1::Snapshot& snapshot, const std::string& machine,
                               const SnapshotsInUse& in_use) {
  auto user = in_use.find(snapshot.id());
  return {.id = snapshot.id(),
          .machine = machine,
          .point = absl::FromUnixNanos(snapshot.point_unix_ns()),
          .labels = {snapshot.labels().begin(), snapshot.labels().end()},
          .in_use = user == in_use.end() ? "" : user->second};
}

absl::StatusOr<std::vector<RetentionVerdict>> DecideRetention(absl::Span<const RetentionCandidate> candidates,
                                                              const RetentionPolicy& policy, absl::Time now,
                                                              absl::TimeZone zone) {
  STILL_RETURN_IF_ERROR(CheckPolicy(policy));
  std::vector<Entry> entries;
  entries.reserve(candidates.size());  // The map below points into it.
  std::map<std::string, std::vector<Entry*>> machines;
  for (const RetentionCandidate& candidate : candidates) {
    Entry& entry = entries.emplace_back(Entry{.candidate = &candidate, .kept_by = {}, .not_kept_by = {}});
    ApplyLabelsAndAge(entry, policy, now);
    if (candidate.point <= now) machines[candidate.machine].push_back(&entry);
  }
  for (auto& [machine, newest_first] : machines) {
    std::sort(newest_first.begin(), newest_first.end(), [](const Entry* a, const Entry* b) {
      return std::tie(a->candidate->point, a->candidate->id) > std::tie(b->candidate->point, b->candidate->id);
    });
    ApplyLast(newest_first, policy.last);
    for (const PeriodRule& rule : kPeriodRules) ApplyPeriods(newest_first, rule, policy.*rule.count, zone);
  }
  std::vector<RetentionVerdict> verdicts;
  for (Entry& entry : entries) {
    bool keep = !entry.kept_by.empty();
    verdicts.push_back({.id = entry.candidate->id,
                        .keep = keep,
                        .reasons = keep ? std::move(entry.kept_by) : std::move(entry.not_kept_by)});
  }
  return verdicts;
}

}  // namespace still::snapshot
