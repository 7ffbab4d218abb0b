// schedule run-now, history: runs, and what came of them.
#include "tools/still/schedule_runs.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/name_match.h"
#include "tools/still/choose.h"
#include "tools/still/format.h"
#include "tools/still/schedule_client.h"
#include "tools/still/schedule_names.h"

namespace still::cli {
namespace {

namespace pb = ::stillpoint::schedule::v1;
using Stub = ScheduleControl::Stub;

// A run begun by hand is looked at this often.
constexpr absl::Duration kLook = absl::Milliseconds(200);

void PrintRuns(const pb::RunList& list) {
  std::vector<std::vector<std::string>> rows = {
      {"RUN", "SCHEDULE", "SESSION", "PLANNED", "STARTED", "TOOK", "OUTCOME", "FROZEN", "PAUSED", "STORED", "MESSAGE"}};
  for (const pb::Run& run : list.runs()) {
    const bool timed = run.started_unix_ns() != 0 && run.ended_unix_ns() != 0;
    std::string outcome = run.outcome();
    if (run.occurrences() > 1) absl::StrAppend(&outcome, " x", run.occurrences());
    rows.push_back({absl::StrCat(run.id()), run.schedule(), run.session().empty() ? "-" : run.session(),
                    FormatUnixNanos(run.planned_unix_ns()), FormatUnixNanos(run.started_unix_ns()),
                    timed ? FormatMicros(static_cast<uint64_t>(
                                std::max<int64_t>(0, run.ended_unix_ns() - run.started_unix_ns()) / 1000))
                          : "-",
                    outcome, run.freeze_us() > 0 ? FormatMicros(run.freeze_us()) : "-",
                    run.pause_us() > 0 ? FormatMicros(run.pause_us()) : "-",
                    run.bytes_stored() > 0 ? FormatBytes(run.bytes_stored()) : "-", run.message()});
  }
  std::cout << FormatTable(rows);
  if (list.waiting_size() == 0) return;
  std::vector<std::string> waiting;
  for (const std::string& session : list.waiting()) waiting.push_back(session.empty() ? "-" : session);
  std::cout << "waiting for room: " << absl::StrJoin(waiting, ", ") << "\n";
}

struct RunNowArguments {
  std::vector<std::string> words;  // Schedules.
  std::vector<std::string> sessions;
  bool wait = false;
};

// The schedules that are meant. An earlier version took one, and sessions of it behind it: `sessions` gets those.
absl::StatusOr<std::vector<std::string>> SchedulesToRun(ScheduleClient& client, const RunNowArguments& arguments,
                                                        std::vector<std::string>& sessions) {
  const std::vector<std::string>& words = arguments.words;
  sessions = arguments.sessions;
  if (words.size() == 1 || !sessions.empty()) return ChooseSchedules(client, words);
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, ListSchedules(client, ""));
  std::set<std::string> schedules;
  std::set<std::string> sessions_of_the_first;
  for (const auto& entry : list.schedules()) {
    schedules.insert(entry.schedule().name());
    if (entry.schedule().name() != words[0]) continue;
    sessions_of_the_first.insert(entry.sessions().begin(), entry.sessions().end());
    sessions_of_the_first.insert(entry.schedule().sessions().begin(), entry.schedule().sessions().end());
  }
  bool as_before = schedules.contains(words[0]);
  for (size_t i = 1; i < words.size(); ++i) {
    if (!IsPattern(words[i]) && !schedules.contains(words[i])) continue;
    as_before = false;
    if (IsPattern(words[i]) || !sessions_of_the_first.contains(words[i])) continue;
    // Nothing is run that may not have been meant.
    return absl::InvalidArgumentError(absl::StrCat(Quoted(words[i]), " is a schedule, and a session of ", words[0],
                                                   "; write ", words[0], " --session ", words[i],
                                                   ", or run one schedule after the other"));
  }
  if (!as_before) return ChooseSchedules(client, words);
  sessions.assign(words.begin() + 1, words.end());
  HintAt(absl::StrCat("run-now ", absl::StrJoin(words, " ")),
         absl::StrCat("run-now ", words[0], " --session ", absl::StrJoin(sessions, " --session ")));
  return std::vector<std::string>{words[0]};
}

absl::StatusOr<pb::RunList> RunsOf(ScheduleClient& client, const std::string& name, uint32_t limit) {
  pb::HistoryRequest request;
  request.set_name(name);
  request.set_limit(limit);
  return client.Call(&Stub::History, request);
}

// Those that wait for room are begun by stilld, unless the schedule goes on no more.
absl::Status CheckGoesOn(ScheduleClient& client, const std::string& name, const std::set<std::string>& waiting) {
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, ListSchedules(client, name));
  if (!list.schedules(0).schedule().paused()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("schedule ", name, " is paused, and there was no room for ",
                                             absl::StrJoin(waiting, ", "), ": run them when the others are done"));
}

// What was begun of one schedule.
struct BegunNow {
  std::string schedule;
  std::set<int64_t> runs;
  std::set<std::string> waiting;  // Sessions whose runs must wait for room first.
};

// Moves what has begun of `begun` from waiting to runs, and gives those that have ended. `before`: the newest run that was
// there.
absl::StatusOr<std::vector<pb::Run>> EndedOf(ScheduleClient& client, BegunNow& begun, int64_t before) {
  STILL_ASSIGN_OR_RETURN(pb::RunList history, RunsOf(client, begun.schedule, 1000));
  std::vector<pb::Run> ended;
  for (auto run = history.runs().rbegin(); run != history.runs().rend(); ++run) {  // The oldest first.
    if (run->id() > before && begun.waiting.erase(run->session()) > 0) begun.runs.insert(run->id());
    if (begun.runs.count(run->id()) != 0 && run->outcome() != "running") ended.push_back(*run);
  }
  if (!begun.waiting.empty()) STILL_RETURN_IF_ERROR(CheckGoesOn(client, begun.schedule, begun.waiting));
  return ended;
}

// Waits until all of it has ended, also what must wait for room first.
absl::StatusOr<pb::RunList> WaitForRuns(ScheduleClient& client, std::vector<BegunNow> begun, int64_t before) {
  for (;;) {
    auto waits = [](const BegunNow& one) { return !one.waiting.empty(); };
    if (!client.daemon()) {
      // Watches, and begins nothing else.
      if (std::none_of(begun.begin(), begun.end(), waits)) client.supervisor().Drain();
      STILL_RETURN_IF_ERROR(client.supervisor().Step().status());
    }
    pb::RunList all;
    bool over = true;
    for (BegunNow& one : begun) {
      STILL_ASSIGN_OR_RETURN(std::vector<pb::Run> ended, EndedOf(client, one, before));
      over &= !waits(one) && ended.size() == one.runs.size();
      for (pb::Run& run : ended) *all.add_runs() = std::move(run);
    }
    if (over) return all;
    Clock::Real().Sleep(kLook);
  }
}

absl::Status RunNow(Context& context, const RunNowArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  std::vector<std::string> sessions;
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> names, SchedulesToRun(*client, arguments, sessions));
  STILL_ASSIGN_OR_RETURN(const pb::RunList past, RunsOf(*client, "", 1));
  const int64_t before = past.runs_size() == 0 ? 0 : past.runs(0).id();
  pb::RunList runs;
  std::vector<BegunNow> begun;
  absl::Status error;  // Of one of them; the others run all the same.
  for (const std::string& name : names) {
    pb::RunNowRequest request;
    request.set_name(name);
    request.mutable_sessions()->Assign(sessions.begin(), sessions.end());
    absl::StatusOr<pb::RunList> started = client->Call(&Stub::RunNow, request);
    error = FirstError(error, names.size() > 1 ? Annotate(started.status(), name) : started.status());
    if (!started.ok()) continue;
    BegunNow& one = begun.emplace_back(
        BegunNow{.schedule = name, .waiting = {started->waiting().begin(), started->waiting().end()}});
    for (const pb::Run& run : started->runs()) one.runs.insert(run.id());
    runs.MergeFrom(*started);
  }
  if (begun.empty()) return error;
  if (arguments.wait) {
    STILL_ASSIGN_OR_RETURN(runs, WaitForRuns(*client, std::move(begun), before));
  }
  context.Print(ToJson(runs), [&] { PrintRuns(runs); });
  for (const pb::Run& run : runs.runs()) {
    if (run.outcome() == "succeeded" || run.outcome() == "running") continue;
    return FirstError(error,
                      absl::AbortedError(absl::StrCat("run ", run.id(), " ", run.outcome(), ": ", run.message())));
  }
  return error;
}

struct HistoryArguments {
  std::vector<std::string> schedules;  // Names and patterns; none: all.
  std::vector<std::string> sessions;
  uint32_t limit = 50;
};

// The newest that are asked for when not all of them are wanted: what comes back must fit a message.
constexpr uint32_t kMostLookedAt = 10'000;
// As many as the service gives.
constexpr uint32_t kMostAsked = 100'000;

// stilld looks for one name; it may also be one that is gone.
std::string OnlyName(const std::vector<std::string>& words) {
  return words.size() == 1 && !IsPattern(words[0]) ? words[0] : "";
}

absl::StatusOr<pb::RunList> FindRuns(ScheduleClient& client, const HistoryArguments& arguments) {
  pb::HistoryRequest request;
  request.set_name(OnlyName(arguments.schedules));
  request.set_session(OnlyName(arguments.sessions));
  for (uint32_t asked = arguments.limit;; asked = std::min(kMostLookedAt, 4 * asked)) {
    request.set_limit(asked);
    STILL_ASSIGN_OR_RETURN(pb::RunList all, client.Call(&Stub::History, request));
    pb::RunList found;
    for (pb::Run& run : *all.mutable_runs()) {
      if (found.runs_size() == static_cast<int>(arguments.limit)) break;
      if (!FitsOneOf(arguments.schedules, run.schedule()) || !FitsOneOf(arguments.sessions, run.session())) continue;
      *found.add_runs() = std::move(run);
    }
    const bool is_all = static_cast<uint32_t>(all.runs_size()) < asked;
    if (is_all || asked >= kMostLookedAt || found.runs_size() == static_cast<int>(arguments.limit)) return found;
  }
}

absl::Status History(Context& context, const HistoryArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(const pb::RunList runs, FindRuns(*client, arguments));
  context.Print(ToJson(runs), [&] { PrintRuns(runs); });
  return absl::OkStatus();
}

}  // namespace

void AddScheduleRuns(CLI::App& group, Context& context) {
  auto now = std::make_shared<RunNowArguments>();
  CLI::App* run_now = context.AddCommand(group, "run-now", "Run schedules now, beside their timing",
                                         [=](Context& c) { return RunNow(c, *now); });
  run_now->add_option("schedules", now->words, "Names, or patterns: 'nightly-*'")->required();
  run_now->add_option("--session", now->sessions, "Only this session; repeated: these (default: all that they fit)")
      ->allow_extra_args(false);
  run_now->add_flag("--wait", now->wait, "Until the runs have ended");

  auto past = std::make_shared<HistoryArguments>();
  CLI::App* history = context.AddCommand(group, "history", "What was run, missed and skipped",
                                         [=](Context& c) { return History(c, *past); });
  history->add_option("schedules", past->schedules, "Only of these: names, or patterns: 'nightly-*'");
  history->add_option("--session", past->sessions, "Only of this session: a name or a pattern; may be repeated")
      ->allow_extra_args(false);
  history->add_option("--limit", past->limit, "At most this many, the newest")
      ->check(CLI::Range(1U, kMostAsked))
      ->capture_default_str();
}

}  // namespace still::cli
