#include "tools/still/schedule_preview.h"

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/quantity.h"
#include "schedule/preview.h"
#include "snapshot/machine.h"
#include "tools/still/format.h"
#include "tools/still/schedule_client.h"
#include "tools/still/schedule_names.h"

namespace still::cli {
namespace {

constexpr absl::Duration kLongestPreview = absl::Hours(24 * 4000);

struct PreviewArguments {
  std::string name;
  std::string session;
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

absl::Status Preview(Context& context, const PreviewArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(const absl::Duration span, SpanOf(arguments));
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(stillpoint::schedule::v1::ScheduleList list, ListSchedules(*client, arguments.name));
  const auto& entry = list.schedules(0);
  STILL_ASSIGN_OR_RETURN(schedule::Schedule schedule, schedule::MakeSchedule(entry.schedule(), absl::LocalTimeZone()));
  std::string session = arguments.session;
  if (session.empty()) session = entry.sessions().empty() ? "any" : entry.sessions(0);
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(std::vector<manifestpb::Snapshot> snapshots, repository->ListSnapshots());
  STILL_ASSIGN_OR_RETURN(const snapshot::MachineIdentity machine, snapshot::FindMachine(context.sessions(), session));
  std::vector<snapshot::RetentionCandidate> existing;
  for (const manifestpb::Snapshot& one : snapshots) {
    auto label = one.labels().find(std::string(schedule::kScheduleLabel));
    if (label == one.labels().end() || label->second != arguments.name) continue;
    if (!snapshot::IsSnapshotOf(one, machine)) continue;
    existing.push_back({.id = one.id(),
                        .machine = session,
                        .point = absl::FromUnixNanos(one.point_unix_ns()),
                        .labels = {one.labels().begin(), one.labels().end()}});
  }
  STILL_ASSIGN_OR_RETURN(std::vector<schedule::PreviewedSnapshot> timeline,
                         schedule::Preview(schedule, session, existing, Clock::Real().Now(), span));
  std::vector<std::vector<std::string>> rows = {{"POINT", "SNAPSHOT", "THEN", "WHY"}};
  nlohmann::json json = nlohmann::json::array();
  for (const schedule::PreviewedSnapshot& one : timeline) {
    std::string then = one.keep ? "kept" : "dropped";
    if (one.dropped.has_value()) absl::StrAppend(&then, " ", FormatUnixNanos(absl::ToUnixNanos(*one.dropped)));
    json.push_back({{"point_unix_ns", absl::ToUnixNanos(one.point)},
                    {"snapshot", one.id},
                    {"kept", one.keep},
                    {"reasons", one.reasons}});
    if (one.keep || arguments.all) {
      rows.push_back({FormatUnixNanos(absl::ToUnixNanos(one.point)),
                      one.id.empty() ? "(to come)" : one.id.substr(0, 12), then, absl::StrJoin(one.reasons, ", ")});
    }
  }
  context.Print(json, [&] {
    std::cout << "session " << session << " in " << ShortDuration(span) << ", if every run succeeds:\n"
              << FormatTable(rows);
  });
  return absl::OkStatus();
}

}  // namespace

void AddSchedulePreview(CLI::App& group, Context& context) {
  auto ahead = std::make_shared<PreviewArguments>();
  CLI::App* preview = context.AddCommand(group, "preview", "The snapshots that timing and retention will leave",
                                         [=](Context& c) { return Preview(c, *ahead); });
  preview->add_option("schedule", ahead->name, "Name of the schedule")->required();
  preview->add_option("--session", ahead->session, "Of this session (default: the first that it fits)");
  preview->add_option("--for", ahead->span, "How far: 30d, 8w")->capture_default_str();
  preview->add_option("--days", ahead->days)->check(CLI::Range(1, 4000))->group("");
  preview->add_flag("--all", ahead->all, "Also what will be dropped");
}

}  // namespace still::cli
