#include "schedule/schedule.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/names.h"
#include "base/quantity.h"

namespace still::schedule {
namespace {

using Definition = schedulepb::Schedule;

constexpr size_t kMaxName = 63;
constexpr absl::Duration kShortestInterval = absl::Seconds(10);
constexpr absl::Duration kDefaultTimeLimit = absl::Hours(24);
constexpr absl::Duration kDefaultVerifyPeriod = absl::Hours(30 * 24);
// What the dead man's limit allows for a run that is late or must be tried again, whatever the timing says.
constexpr absl::Duration kLeastMaxAge = absl::Minutes(5);

absl::Status CheckName(const std::string& name) {
  bool good = !name.empty() && name.size() <= kMaxName && name[0] != '-' &&
              std::all_of(name.begin(), name.end(),
                          [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-'; });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("schedule name \"", name, "\": up to 63 of a-z, 0-9 and -, not beginning with -"));
}

absl::Status OneOf(absl::string_view what, const std::string& value, const std::vector<absl::string_view>& choices) {
  if (value.empty() || std::find(choices.begin(), choices.end(), value) != choices.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " \"", value, "\": use one of ", absl::StrJoin(choices, ", ")));
}

absl::StatusOr<absl::Duration> SpanOr(const std::string& text, absl::Duration otherwise) {
  if (text.empty()) return otherwise;
  return ParseDuration(text);
}

absl::StatusOr<Timing> MakeTiming(const Definition& definition, absl::TimeZone local) {
  Timing timing;
  timing.zone = local;
  if (!definition.zone().empty() && !absl::LoadTimeZone(definition.zone(), &timing.zone)) {
    return absl::InvalidArgumentError(
        absl::StrCat("time zone \"", definition.zone(), "\": there is none of that name"));
  }
  if (definition.calendar().empty() == definition.every().empty()) {
    return absl::InvalidArgumentError("a schedule needs either calendar expressions or an interval");
  }
  for (const std::string& text : definition.calendar()) {
    STILL_ASSIGN_OR_RETURN(CalendarExpression expression, CalendarExpression::Parse(text));
    timing.calendar.push_back(std::move(expression));
  }
  STILL_ASSIGN_OR_RETURN(timing.every, SpanOr(definition.every(), absl::ZeroDuration()));
  if (!definition.every().empty() && timing.every < kShortestInterval) {
    return absl::InvalidArgumentError(absl::StrCat("interval ", definition.every(), ": the shortest is 10s"));
  }
  STILL_ASSIGN_OR_RETURN(timing.jitter, SpanOr(definition.jitter(), absl::ZeroDuration()));
  STILL_ASSIGN_OR_RETURN(timing.spread, SpanOr(definition.spread(), absl::ZeroDuration()));
  for (const std::string& text : definition.blackouts()) {
    STILL_ASSIGN_OR_RETURN(Blackout blackout, Blackout::Parse(text));
    timing.blackouts.push_back(std::move(blackout));
  }
  STILL_RETURN_IF_ERROR(OneOf("missed runs", definition.missed(), {"run-once", "skip"}));
  timing.missed = definition.missed() == "skip" ? MissedPolicy::kSkip : MissedPolicy::kRunOnce;
  return timing;
}

absl::Status CheckRest(const Definition& definition) {
  STILL_RETURN_IF_ERROR(OneOf("require", definition.require(), {"crash", "filesystem", "application"}));
  STILL_RETURN_IF_ERROR(OneOf("when-off", definition.when_off(), {"tell", "skip", "disk"}));
  const bool promises = !definition.require().empty() || !definition.when_off().empty();
  if (promises && definition.kind() != Definition::KIND_CAPTURE) {
    return absl::InvalidArgumentError(
        "a promised level, and what is done when a machine is off, are for schedules of kind capture");
  }
  STILL_RETURN_IF_ERROR(OneOf("quiesce", definition.quiesce(), {"require", "try", "off"}));
  STILL_RETURN_IF_ERROR(OneOf("hooks", definition.hooks(), {"fail", "warn", "skip"}));
  STILL_RETURN_IF_ERROR(SpanOr(definition.freeze_lease(), absl::Seconds(10)).status());
  STILL_RETURN_IF_ERROR(SpanOr(definition.max_pause(), absl::Seconds(2)).status());
  STILL_RETURN_IF_ERROR(OneOf("memory", definition.memory(), {"try", "require", "stop"}));
  STILL_RETURN_IF_ERROR(SpanOr(definition.max_age(), absl::ZeroDuration()).status());
  if (!definition.check().empty() && definition.kind() != Definition::KIND_DRILL) {
    return absl::InvalidArgumentError("a check is for schedules of kind drill");
  }
  if (definition.read_bandwidth() > 0 && definition.kind() != Definition::KIND_CAPTURE) {
    return absl::InvalidArgumentError("a limit for reading disks is for schedules of kind capture");
  }
  if (definition.track_memory() && (definition.kind() != Definition::KIND_CAPTURE || definition.disk_only())) {
    return absl::InvalidArgumentError("memory is tracked for schedules of kind capture, with memory");
  }
  if (!definition.retention().empty() && definition.kind() != Definition::KIND_CAPTURE) {
    return absl::InvalidArgumentError("retention is for schedules of kind capture");
  }
  return absl::OkStatus();
}

}  // namespace

bool Schedule::per_session() const {
  return definition.kind() == Definition::KIND_CAPTURE || definition.kind() == Definition::KIND_DRILL;
}

bool Schedule::Fits(absl::string_view session) const {
  return std::any_of(definition.sessions().begin(), definition.sessions().end(),
                     [&](const std::string& pattern) { return MatchesPattern(session, pattern); });
}

absl::Duration Schedule::MaxAge(absl::Time now) const {
  absl::StatusOr<absl::Duration> given = SpanOr(definition.max_age(), absl::ZeroDuration());
  if (given.ok() && *given > absl::ZeroDuration()) return *given;  // Checked when it was made.
  return std::max(2 * timing.LongestGap(now), kLeastMaxAge);
}

absl::StatusOr<Schedule> MakeSchedule(const Definition& definition, absl::TimeZone local) {
  STILL_RETURN_IF_ERROR(CheckName(definition.name()));
  Schedule schedule;
  schedule.definition = definition;
  absl::StatusOr<Timing> timing = MakeTiming(definition, local);
  if (!timing.ok()) return Annotate(timing.status(), absl::StrCat("schedule ", definition.name()));
  schedule.timing = *std::move(timing);
  STILL_RETURN_IF_ERROR(Annotate(CheckRest(definition), absl::StrCat("schedule ", definition.name())));
  if (!definition.retention().empty()) {
    STILL_ASSIGN_OR_RETURN(schedule.retention, snapshot::ParseRetention(definition.retention()));
  }
  if (schedule.per_session() && definition.sessions().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("schedule ", definition.name(), ": name the sessions it is for, or '*'"));
  }
  STILL_ASSIGN_OR_RETURN(schedule.time_limit, SpanOr(definition.time_limit(), kDefaultTimeLimit));
  // As of `still run`: there is none.
  if (schedule.time_limit == absl::ZeroDuration()) schedule.time_limit = absl::InfiniteDuration();
  STILL_ASSIGN_OR_RETURN(schedule.verify_period, SpanOr(definition.verify_period(), kDefaultVerifyPeriod));
  if (definition.when_off() == "skip") schedule.when_off = WhenOff::kSkip;
  if (definition.when_off() == "disk") schedule.when_off = WhenOff::kDisk;
  schedule.counted_from = absl::FromUnixNanos(definition.counted_from_unix_ns());
  return schedule;
}

std::string KindName(Definition::Kind kind) {
  switch (kind) {
    case Definition::KIND_VERIFY:
      return "verify";
    case Definition::KIND_DRILL:
      return "drill";
    case Definition::KIND_PRUNE:
      return "prune";
    default:
      return "capture";
  }
}

std::string OutcomeName(store::RunOutcome outcome) {
  switch (outcome) {
    case store::RunOutcome::kRunning:
      return "running";
    case store::RunOutcome::kSucceeded:
      return "succeeded";
    case store::RunOutcome::kFailed:
      return "failed";
    case store::RunOutcome::kInterrupted:
      return "interrupted";
    case store::RunOutcome::kMissed:
      return "missed";
    case store::RunOutcome::kSkipped:
      return "skipped";
  }
  return "unknown";
}

absl::StatusOr<store::ScheduleRow> ToRow(const Schedule& schedule) {
  const Definition& definition = schedule.definition;
  store::ScheduleRow row{.name = definition.name(),
                         .session = absl::StrJoin(definition.sessions(), " "),
                         .timing = definition.every().empty() ? absl::StrJoin(definition.calendar(), "; ")
                                                              : absl::StrCat("every ", definition.every()),
                         .retention = definition.retention(),
                         .enabled = !definition.paused()};
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  auto status = google::protobuf::util::MessageToJsonString(definition, &row.settings, options);
  if (!status.ok()) return absl::InternalError(absl::StrCat("schedule as JSON: ", status.ToString()));
  return row;
}

absl::StatusOr<Schedule> FromRow(const store::ScheduleRow& row, absl::TimeZone local) {
  Definition definition;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // A newer version's.
  auto status = google::protobuf::util::JsonStringToMessage(row.settings, &definition, options);
  if (!status.ok()) {
    return absl::DataLossError(absl::StrCat("schedule ", row.name, " in the book: ", status.ToString()));
  }
  definition.set_name(row.name);
  definition.set_paused(!row.enabled);
  return MakeSchedule(definition, local);
}

schedulepb::Run ToProto(const store::RunRow& run) {
  schedulepb::Run message;
  message.set_id(run.id);
  message.set_schedule(run.schedule);
  message.set_kind(run.kind);
  message.set_session(run.session);
  message.set_planned_unix_ns(absl::ToUnixNanos(run.planned));
  message.set_planned_until_unix_ns(absl::ToUnixNanos(run.planned_until));
  message.set_occurrences(run.occurrences);
  if (run.started.has_value()) message.set_started_unix_ns(absl::ToUnixNanos(*run.started));
  if (run.ended.has_value()) message.set_ended_unix_ns(absl::ToUnixNanos(*run.ended));
  message.set_outcome(OutcomeName(run.outcome));
  message.set_snapshot(run.snapshot);
  message.set_consistency(run.consistency);
  message.set_bytes_read(run.bytes_read);
  message.set_bytes_stored(run.bytes_stored);
  message.set_freeze_us(run.freeze_us);
  message.set_pause_us(run.pause_us);
  message.set_message(EscapeName(run.message));  // An older version cut it within a letter.
  return message;
}

bool MatchesPattern(absl::string_view text, absl::string_view pattern) {
  // The last star, and how much of the text it has swallowed so far.
  size_t star = absl::string_view::npos;
  size_t swallowed = 0;
  size_t t = 0;
  size_t p = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      swallowed = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != absl::string_view::npos) {
      p = star + 1;
      t = ++swallowed;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace still::schedule
