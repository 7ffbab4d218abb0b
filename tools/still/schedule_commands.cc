// schedule add, list, show, edit, rm, pause, resume, run-due, check, coverage.
#include <algorithm>
#include <functional>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/names.h"
#include "base/quantity.h"
#include "tools/still/choose.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/labels.h"
#include "tools/still/schedule_client.h"
#include "tools/still/schedule_names.h"
#include "tools/still/schedule_options.h"
#include "tools/still/schedule_preview.h"
#include "tools/still/schedule_runs.h"

namespace still::cli {
namespace {

namespace pb = ::stillpoint::schedule::v1;
using Stub = ScheduleControl::Stub;
using Rows = std::vector<std::vector<std::string>>;

std::string TimeOr(int64_t nanoseconds, const char* otherwise) {
  return nanoseconds == 0 ? otherwise : FormatUnixNanos(nanoseconds);
}

std::string TimingOf(const pb::Schedule& schedule) {
  return schedule.every().empty() ? absl::StrJoin(schedule.calendar(), "; ") : absl::StrCat("every ", schedule.every());
}

std::string KindOf(const pb::Schedule& schedule) { return schedule::KindName(schedule.kind()); }

absl::Status Add(Context& context, const std::string& name, const ScheduleOptions& options) {
  STILL_RETURN_IF_ERROR(CheckNewName("schedule", name));
  pb::Schedule schedule;
  schedule.set_name(name);
  schedule.set_retries(kDefaultRetries);
  STILL_RETURN_IF_ERROR(options.Apply(schedule));
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(pb::Schedule added, client->Call(&Stub::Add, schedule));
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, ListSchedules(*client, name));
  context.Print(ToJson(added), [&] {
    std::cout << "schedule " << name << ": " << TimingOf(added) << ", next "
              << TimeOr(list.schedules(0).next_unix_ns(), "never") << "\n";
    if (!client->daemon()) {
      std::cerr << "still: stilld is not running here; nothing happens before it does, or `still schedule run-due`\n";
    }
  });
  return absl::OkStatus();
}

absl::Status Edit(Context& context, const std::string& name, const ScheduleOptions& options) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, ListSchedules(*client, name));
  pb::Schedule schedule = list.schedules(0).schedule();
  STILL_RETURN_IF_ERROR(options.Apply(schedule));
  STILL_ASSIGN_OR_RETURN(pb::Schedule stored, client->Call(&Stub::Replace, schedule));
  context.Print(ToJson(stored), [&] { std::cout << "schedule " << name << ": " << TimingOf(stored) << "\n"; });
  return absl::OkStatus();
}

struct ScheduleListArguments {
  std::vector<std::string> names;
  std::vector<std::string> labels;
};

absl::Status PrintSchedules(Context& context, const ScheduleListArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(const LabelFilter labels, LabelFilter::Parse(arguments.labels));
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList all, ListSchedules(*client, ""));
  pb::ScheduleList list;
  for (const auto& entry : all.schedules()) {
    if (!FitsOneOf(arguments.names, entry.schedule().name()) || !labels.Fits(entry.schedule().labels())) continue;
    *list.add_schedules() = entry;
  }
  Rows rows = {{"NAME", "KIND", "SESSIONS", "WHEN", "NEXT", "LAST", "OUTCOME"}};
  for (const auto& entry : list.schedules()) {
    const pb::Schedule& schedule = entry.schedule();
    rows.push_back({schedule.name(), KindOf(schedule), absl::StrJoin(schedule.sessions(), " "), TimingOf(schedule),
                    schedule.paused() ? "paused" : TimeOr(entry.next_unix_ns(), "never"),
                    TimeOr(entry.newest().started_unix_ns(), "-"),
                    entry.has_newest() ? entry.newest().outcome() : "-"});
  }
  context.Print(ToJson(list), [&] { std::cout << FormatTable(rows); });
  return absl::OkStatus();
}

void PrintEntry(const pb::ScheduleList::Entry& entry) {
  const pb::Schedule& schedule = entry.schedule();
  Rows rows = {{"name", schedule.name()}, {"kind", KindOf(schedule)}};
  auto row = [&](const char* label, const std::string& value) {
    if (!value.empty()) rows.push_back({label, value});
  };
  row("sessions", absl::StrJoin(schedule.sessions(), " "));
  row("now fits", absl::StrJoin(entry.sessions(), " "));
  row("when", TimingOf(schedule));
  row("zone", schedule.zone());
  row("next", schedule.paused() ? "paused" : TimeOr(entry.next_unix_ns(), "never"));
  row("jitter", schedule.jitter());
  row("spread", schedule.spread());
  row("missed", schedule.missed().empty() ? "run-once" : schedule.missed());
  row("blackouts", absl::StrJoin(schedule.blackouts(), "; "));
  row("retention", schedule.retention());
  row("max age", entry.max_age());
  row("quiesce", schedule.quiesce());
  row("before", schedule.before());
  row("after", schedule.after());
  row("check", schedule.check());
  row("retries", absl::StrCat(schedule.retries()));
  if (schedule.bandwidth() > 0) row("bandwidth", FormatBytes(schedule.bandwidth()) + "/s");
  if (schedule.read_bandwidth() > 0) row("read bandwidth", FormatBytes(schedule.read_bandwidth()) + "/s");
  if (entry.has_newest()) {
    row("last run", absl::StrCat(TimeOr(entry.newest().planned_unix_ns(), "-"), " ", entry.newest().outcome(), " ",
                                 entry.newest().message()));
  }
  if (!schedule.labels().empty()) {
    std::vector<std::string> labels;
    for (const auto& [key, value] : schedule.labels()) labels.push_back(absl::StrCat(key, "=", value));
    std::sort(labels.begin(), labels.end());
    row("labels", absl::StrJoin(labels, " "));
  }
  std::cout << FormatTable(rows);
}

absl::Status PrintSome(Context& context, const std::vector<std::string>& words) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ChooseSchedules(*client, words));
  nlohmann::json json = nlohmann::json::array();
  pb::ScheduleList chosen;
  for (const std::string& name : names) {
    STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, ListSchedules(*client, name));
    json.push_back(ToJson(list.schedules(0)));
    *chosen.add_schedules() = list.schedules(0);
  }
  context.Print(OneOrAll(words, json), [&] {
    for (int i = 0; i < chosen.schedules_size(); ++i) {
      if (i > 0) std::cout << "\n";
      PrintEntry(chosen.schedules(i));
    }
  });
  return absl::OkStatus();
}

absl::Status Remove(Context& context, const std::vector<std::string>& words) {
  return WithEachSchedule(
      context, words,
      [](ScheduleClient& client, const std::string& name) {
        pb::Named request;
        request.set_name(name);
        return client.Call(&Stub::Remove, request).status();
      },
      [](const std::string& name) -> nlohmann::json {
        return {{"removed", name}};
      },
      " removed; its snapshots stay");
}

absl::Status SetPaused(Context& context, const std::vector<std::string>& words, bool paused) {
  return WithEachSchedule(
      context, words,
      [paused](ScheduleClient& client, const std::string& name) {
        pb::SetPausedRequest request;
        request.set_name(name);
        request.set_paused(paused);
        return client.Call(&Stub::SetPaused, request).status();
      },
      [paused](const std::string& name) -> nlohmann::json {
        return {{"schedule", name}, {"paused", paused}};
      },
      paused ? " is paused" : " goes on");
}

// An error when something is wrong: for OnFailure=, and for `check && ping`.
absl::Status Say(Context& context, const pb::CheckReport& report) {
  Rows rows = {{"WHAT", "SCHEDULE", "SESSION", "SINCE", "TOLD", "MESSAGE"}};
  for (const auto& problem : report.problems()) {
    rows.push_back({problem.kind(), problem.schedule().empty() ? "-" : problem.schedule(),
                    problem.session().empty() ? "-" : problem.session(), FormatUnixNanos(problem.since_unix_ns()),
                    problem.delivered() ? "yes" : "not yet", problem.message()});
  }
  context.Print(ToJson(report), [&] {
    if (report.problems_size() > 0) std::cout << FormatTable(rows);
  });
  if (report.problems_size() == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(report.problems_size(), " things are not as promised"));
}

// For a timer on hosts without stilld.
absl::Status RunDue(Context& context) {
  absl::StatusOr<std::unique_ptr<schedule::Supervisor>> opened = OpenSupervisorInCharge(context);
  if (!opened.ok()) return TellWithoutBookHourly(context, opened.status());
  const std::unique_ptr<schedule::Supervisor> supervisor = *std::move(opened);
  absl::Status charge = supervisor->TakeCharge();
  if (absl::IsUnavailable(charge)) {
    std::cerr << "still: " << charge.message() << "; nothing to do\n";
    return absl::OkStatus();
  }
  if (!charge.ok()) return TellWithoutBookHourly(context, charge);
  absl::Status worked;
  do {
    absl::StatusOr<absl::Duration> wait = supervisor->Step();
    worked = wait.status();
    if (worked.ok() && supervisor->running() > 0) supervisor->Sleep(*wait);
  } while (worked.ok() && supervisor->running() > 0);
  // Failures are tried again by a later call: when, is in the book.
  supervisor->FinishTelling();
  STILL_RETURN_IF_ERROR(worked);
  STILL_ASSIGN_OR_RETURN(pb::CheckReport report, supervisor->Report());
  return Say(context, report);
}

// What is wrong with stilld itself; empty: it works. Its report, when it gave one.
std::string TroubleOf(ScheduleClient& client, pb::CheckReport& report) {
  absl::StatusOr<pb::CheckReport> answer = client.Call(&Stub::Check, pb::CheckRequest());
  if (!answer.ok()) return absl::StrCat("stilld does not answer: ", answer.status().message());
  report = *std::move(answer);
  const absl::Duration ago = Clock::Real().Now() - absl::FromUnixNanos(report.turned_unix_ns());
  if (ago < schedule::kLongestTurn) return "";
  return absl::StrCat(
      "stilld answers, but has not worked on the schedules ",
      report.turned_unix_ns() == 0 ? "at all" : absl::StrCat("since ", FormatUnixNanos(report.turned_unix_ns())));
}

// The dead man's rule, from outside: stilld is asked, and not trusted.
absl::Status Check(Context& context) {
  std::string trouble;
  if (ScheduleClient::DaemonListens(context)) {
    STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
    pb::CheckReport report;
    trouble = TroubleOf(*client, report);
    if (trouble.empty()) return Say(context, report);
  }
  absl::StatusOr<pb::CheckReport> report = LookWithinLimit(context, trouble);
  return report.ok() ? Say(context, *report) : TellWithoutBook(report.status());
}

absl::Status Coverage(Context& context) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(pb::CheckReport report, client->Call(&Stub::Check, pb::CheckRequest()));
  Rows rows = {{"SESSION", "STATE", "SCHEDULE", "PROMISED", "NEWEST", "LEVEL", "AT MOST", ""}};
  for (const auto& one : report.machines()) {
    const std::string verdict = one.schedule().empty() ? "nothing protects it" : one.stale() ? "too old" : "";
    rows.push_back({one.session(), one.running() ? "running" : "off", one.schedule().empty() ? "-" : one.schedule(),
                    one.level().empty() ? "-" : one.level(), TimeOr(one.newest_unix_ns(), "-"),
                    one.newest_level().empty() ? "-" : one.newest_level(),
                    one.schedule().empty() ? "-" : ShortDuration(absl::Seconds(one.max_age_s())), verdict});
  }
  context.Print(ToJson(report), [&] { std::cout << FormatTable(rows); });
  return absl::OkStatus();
}

}  // namespace

void AddScheduleCommands(CLI::App& app, Context& context) {
  CLI::App* group = app.add_subcommand("schedule", "Scheduled snapshots, verification and restore drills");
  group->require_subcommand(1);
  group->fallthrough();
  auto named = [&](const char* command, const char* help,
                   std::function<absl::Status(Context&, const std::string&)> body) {
    auto name = std::make_shared<std::string>();
    CLI::App* added = context.AddCommand(*group, command, help, [=](Context& c) { return body(c, *name); });
    added->add_option("schedule", *name, "Name of the schedule")->required();
    return added;
  };
  auto several = [&](const char* command, const char* help,
                     std::function<absl::Status(Context&, const std::vector<std::string>&)> body) {
    auto names = std::make_shared<std::vector<std::string>>();
    CLI::App* added = context.AddCommand(*group, command, help, [=](Context& c) { return body(c, *names); });
    added->add_option("schedules", *names, "Names, or patterns: 'nightly-*'")->required();
  };
  for (bool edit : {false, true}) {
    auto options = std::make_shared<ScheduleOptions>();
    options->AddTo(*named(
        edit ? "edit" : "add", edit ? "Change what is given" : "Add a schedule",
        [=](Context& c, const std::string& name) { return edit ? Edit(c, name, *options) : Add(c, name, *options); }));
  }
  auto listed = std::make_shared<ScheduleListArguments>();
  CLI::App* list = context.AddCommand(*group, "list", "All schedules, and when they run next",
                                      [=](Context& c) { return PrintSchedules(c, *listed); });
  list->add_option("schedules", listed->names, "Only these: names, or patterns: 'nightly-*'");
  list->add_option("--label", listed->labels,
                   "Only those that give this label: KEY or KEY=VALUE; repeated: that give all of them")
      ->allow_extra_args(false);
  several("show", "Everything about schedules", PrintSome);
  several("rm", "Remove schedules; their snapshots stay", Remove);
  several("pause", "Begin no more runs",
          [](Context& c, const std::vector<std::string>& words) { return SetPaused(c, words, true); });
  several("resume", "Go on; what would have run meanwhile does not count",
          [](Context& c, const std::vector<std::string>& words) { return SetPaused(c, words, false); });

  AddScheduleRuns(*group, context);
  AddSchedulePreview(*group, context);

  context.AddCommand(*group, "run-due", "Run what is due and wait for it, on hosts without stilld (by a timer)",
                     RunDue);
  context.AddCommand(*group, "coverage", "Every machine of this host, and what protects it", Coverage);
  context.AddCommand(*group, "check",
                     "Tell what is not as promised, also when stilld is dead; fails when there is something", Check);
}

}  // namespace still::cli
