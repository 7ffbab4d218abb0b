#include "tools/still/schedule_preview.h"

#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/quantity.h"
#include "schedule/preview.h"
#include "snapshot/machine.h"
#include "tools/still/choose.h"
#include "tools/still/format.h"
#include "tools/still/schedule_client.h"
#include "tools/still/schedule_names.h"

namespace still::cli {
namespace {

using ScheduleEntry = ::stillpoint::schedule::v1::ScheduleList::Entry;

constexpr absl::Duration kLongestPreview = absl::Hours(24 * 4000);

struct PreviewArguments {
  std::vector<std::string> schedules;  // Names and patterns.
  std::vector<std::string> sessions;
  std::string span = "30d";
  int days = 0;  // As older versions had it.
  bool all = false;
};

absl::StatusOr<absl::Duration> SpanOf(const PreviewArguments& arguments) {
  if (arguments.days > 0) {
    HintAt(absl::StrCat("--days ", arguments.days), absl::StrCat("--for ", arguments.days, "d"));
    return absl::Hours(24 * arguments.days);
  }
  STILL_ASSIGN_OR_RETURN(const absl::Duration span, ParseDuration(arguments.span));
  if (span > absl::ZeroDuration() && span <= kLongestPreview) return span;
  return absl::InvalidArgumentError(absl::StrCat("--for ", arguments.span, ": up to 4000d"));
}

// What will be there of one schedule and one session.
struct Ahead {
  std::string schedule;
  std::string session;
  std::vector<schedule::PreviewedSnapshot> snapshots;
};

// The sessions that are meant; nothing said: the first that the schedule fits.
absl::StatusOr<std::vector<std::string>> SessionsOf(const ScheduleEntry& entry, const std::vector<std::string>& words) {
  std::vector<std::string> fits(entry.sessions().begin(), entry.sessions().end());
  if (words.empty()) return std::vector<std::string>{fits.empty() ? "any" : fits[0]};
  return ChooseNames(absl::StrCat("session of schedule ", entry.schedule().name()), words, std::move(fits),
                     [](const std::string& word) -> absl::StatusOr<std::string> { return word; });
}

absl::StatusOr<Ahead> PreviewOne(const Context& context, const ScheduleEntry& entry, const std::string& session,
                                 const std::vector<manifestpb::Snapshot>& snapshots, absl::Duration span) {
  STILL_ASSIGN_OR_RETURN(schedule::Schedule schedule, schedule::MakeSchedule(entry.schedule(), absl::LocalTimeZone()));
  STILL_ASSIGN_OR_RETURN(const snapshot::MachineIdentity machine, snapshot::FindMachine(context.sessions(), session));
  std::vector<snapshot::RetentionCandidate> existing;
  for (const manifestpb::Snapshot& one : snapshots) {
    auto label = one.labels().find(std::string(schedule::kScheduleLabel));
    if (label == one.labels().end() || label->second != entry.schedule().name()) continue;
    if (!snapshot::IsSnapshotOf(one, machine)) continue;
    existing.push_back({.id = one.id(),
                        .machine = session,
                        .point = absl::FromUnixNanos(one.point_unix_ns()),
                        .labels = {one.labels().begin(), one.labels().end()}});
  }
  Ahead ahead{.schedule = entry.schedule().name(), .session = session};
  STILL_ASSIGN_OR_RETURN(ahead.snapshots, schedule::Preview(schedule, session, existing, Clock::Real().Now(), span));
  return ahead;
}

nlohmann::json JsonOf(const Ahead& ahead) {
  nlohmann::json json = nlohmann::json::array();
  for (const schedule::PreviewedSnapshot& one : ahead.snapshots) {
    json.push_back({{"point_unix_ns", absl::ToUnixNanos(one.point)},
                    {"snapshot", one.id},
                    {"kept", one.keep},
                    {"reasons", one.reasons}});
  }
  return json;
}

std::string TextOf(const Ahead& ahead, bool all) {
  std::vector<std::vector<std::string>> rows = {{"POINT", "SNAPSHOT", "THEN", "WHY"}};
  for (const schedule::PreviewedSnapshot& one : ahead.snapshots) {
    if (!one.keep && !all) continue;
    std::string then = one.keep ? "kept" : "dropped";
    if (one.dropped.has_value()) absl::StrAppend(&then, " ", FormatUnixNanos(absl::ToUnixNanos(*one.dropped)));
    rows.push_back({FormatUnixNanos(absl::ToUnixNanos(one.point)), one.id.empty() ? "(to come)" : one.id.substr(0, 12),
                    then, absl::StrJoin(one.reasons, ", ")});
  }
  return FormatTable(rows);
}

// The previews of all that the words mean.
absl::StatusOr<std::vector<Ahead>> PreviewAll(const Context& context, const PreviewArguments& arguments,
                                              absl::Duration span) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ChooseSchedules(*client, arguments.schedules));
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(const std::vector<manifestpb::Snapshot> snapshots, repository->ListSnapshots());
  std::vector<Ahead> previews;
  for (const std::string& name : names) {
    STILL_ASSIGN_OR_RETURN(const stillpoint::schedule::v1::ScheduleList list, ListSchedules(*client, name));
    STILL_ASSIGN_OR_RETURN(const std::vector<std::string> sessions, SessionsOf(list.schedules(0), arguments.sessions));
    for (const std::string& session : sessions) {
      STILL_ASSIGN_OR_RETURN(Ahead ahead, PreviewOne(context, list.schedules(0), session, snapshots, span));
      previews.push_back(std::move(ahead));
    }
  }
  return previews;
}

absl::Status Preview(Context& context, const PreviewArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(const absl::Duration span, SpanOf(arguments));
  STILL_ASSIGN_OR_RETURN(const std::vector<Ahead> previews, PreviewAll(context, arguments, span));
  const auto is_several = [](const std::vector<std::string>& words) {
    return words.size() > 1 || (!words.empty() && IsPattern(words[0]));
  };
  const bool several = is_several(arguments.schedules) || is_several(arguments.sessions);
  nlohmann::json list = nlohmann::json::array();
  for (const Ahead& one : previews) {
    list.push_back({{"schedule", one.schedule}, {"session", one.session}, {"snapshots", JsonOf(one)}});
  }
  context.Print(several ? list : list[0]["snapshots"], [&] {
    for (const Ahead& one : previews) {
      if (several) std::cout << (&one == &previews[0] ? "" : "\n") << "schedule " << one.schedule << ", ";
      std::cout << "session " << one.session << " in " << ShortDuration(span) << ", if every run succeeds:\n"
                << TextOf(one, arguments.all);
    }
  });
  return absl::OkStatus();
}

}  // namespace

void AddSchedulePreview(CLI::App& group, Context& context) {
  auto ahead = std::make_shared<PreviewArguments>();
  CLI::App* preview = context.AddCommand(group, "preview", "The snapshots that timing and retention will leave",
                                         [=](Context& c) { return Preview(c, *ahead); });
  preview->add_option("schedules", ahead->schedules, "Names, or patterns: 'nightly-*'")->required();
  preview
      ->add_option("--session", ahead->sessions,
                   "Of this session: a name or a pattern; may be repeated (default: the first that it fits)")
      ->allow_extra_args(false);
  preview->add_option("--for", ahead->span, "How far: 30d, 8w")->capture_default_str();
  preview->add_option("--days", ahead->days)->check(CLI::Range(1, 4000))->group("");
  preview->add_flag("--all", ahead->all, "Also what will be dropped");
}

}  // namespace still::cli
