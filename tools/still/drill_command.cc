// drill; and, for it, the hidden __janitor.
#include <fcntl.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file_system.h"
#include "base/host_identity.h"
#include "base/quantity.h"
#include "schedule/throttle.h"
#include "snapshot/drill.h"
#include "snapshot/throw_away_session.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/each_session.h"
#include "tools/still/format.h"
#include "tools/still/table.h"

namespace still::cli {
namespace {

using store::DrillRecord;
using store::DrillState;

struct DrillArguments {
  std::vector<std::string> words;  // Empty: the newest of all.
  std::string check;
  std::string timeout = "5m";
  std::string agent_timeout;
  std::string bandwidth = "0";
  bool cold = false;
  bool history = false;
};

std::string Name(DrillState state) {
  switch (state) {
    case DrillState::kPassed:
      return "passed";
    case DrillState::kFailed:
      return "failed";
    case DrillState::kAbandoned:
      return "abandoned";
    default:
      return "running";
  }
}

Tone ToneOf(DrillState state) {
  if (state == DrillState::kPassed) return Tone::kGood;
  return state == DrillState::kFailed ? Tone::kBad : Tone::kWarning;
}

std::string NameOf(const DrillRecord& drill) {
  return drill.snapshot_name.empty() ? drill.snapshot_id.substr(0, 12) : drill.snapshot_name;
}

nlohmann::json ToJson(const DrillRecord& drill) {
  nlohmann::json json = {{"id", drill.id},
                         {"snapshot", drill.snapshot_id},
                         {"snapshot_name", drill.snapshot_name},
                         {"session", drill.session},
                         {"place", drill.place},
                         {"state", Name(drill.state)},
                         {"started_unix_ns", absl::ToUnixNanos(drill.started)},
                         {"restored_us", absl::ToInt64Microseconds(drill.restored)},
                         {"check", drill.check},
                         {"message", drill.message}};
  if (drill.ended.has_value()) json["ended_unix_ns"] = absl::ToUnixNanos(*drill.ended);
  if (drill.exit_code.has_value()) json["exit_code"] = *drill.exit_code;
  return json;
}

std::string Shown(absl::Duration duration) {
  return FormatMicros(static_cast<uint64_t>(absl::ToInt64Microseconds(duration)));
}

std::string PassedText(const DrillRecord& passed) {
  return absl::StrCat("drill of ", NameOf(passed), " passed: restored and answering after ", Shown(passed.restored),
                      passed.check.empty() ? "" : ", and its check ended with 0");
}

absl::Status History(Context& context) {
  constexpr int64_t kShown = 50;
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository());
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Book> book, context.OpenBook(*repository));
  STILL_RETURN_IF_ERROR(snapshot::SweepDrills(*book, context.sessions()));
  STILL_ASSIGN_OR_RETURN(std::vector<DrillRecord> drills, book->ListDrills(kShown));
  nlohmann::json list = nlohmann::json::array();
  Table table({"STARTED", "SNAPSHOT", "SESSION", "RESULT", "RESTORED", "EXIT", "MESSAGE"});
  for (const DrillRecord& drill : drills) {
    list.push_back(ToJson(drill));
    table.Add({FormatUnixNanos(absl::ToUnixNanos(drill.started)),
               NameOf(drill),
               drill.session,
               {Name(drill.state), ToneOf(drill.state)},
               drill.restored > absl::ZeroDuration() ? Shown(drill.restored) : "-",
               drill.exit_code.has_value() ? absl::StrCat(*drill.exit_code) : "-",
               drill.message});
  }
  context.Print(list, [&] { std::cout << table.ForTerminal(); });
  return absl::OkStatus();
}

// What words stand for, each reference once. One that means nothing is no reason to leave out the others.
struct ChosenForDrill {
  std::vector<std::string> references;
  absl::Status error;
};
absl::StatusOr<ChosenForDrill> ChooseForDrill(Context& context, store::Repository& repository,
                                              const std::vector<std::string>& words) {
  if (words.empty()) return ChosenForDrill{.references = {"latest"}, .error = absl::OkStatus()};
  STILL_ASSIGN_OR_RETURN(const HostIdentity here, ReadHostIdentity(context.state_directory()));
  ChosenForDrill chosen;
  for (const std::string& word : words) {
    std::vector<std::string> meant = {word};
    if (IsPattern(word)) {
      STILL_ASSIGN_OR_RETURN(const std::vector<manifestpb::Snapshot> all, repository.ListSnapshots());
      absl::StatusOr<std::vector<std::string>> newest = NewestOfSessions(all, word, here);
      chosen.error = WorstError(chosen.error, newest.status());
      meant = newest.ok() ? *std::move(newest) : std::vector<std::string>();
    }
    for (std::string& reference : meant) {
      const auto& known = chosen.references;
      if (std::find(known.begin(), known.end(), reference) == known.end()) {
        chosen.references.push_back(std::move(reference));
      }
    }
  }
  return chosen;
}

// The verdict on a drill that was recorded.
absl::Status FailureOf(const DrillRecord& drill) {
  if (drill.state == DrillState::kPassed) return absl::OkStatus();
  // Whoever relies on this snapshot must treat it as lost until it is known why.
  return absl::DataLossError(absl::StrCat("drill of ", NameOf(drill), " failed: ", drill.message));
}

absl::Status Drill(Context& context, const DrillArguments& arguments) {
  if (arguments.history) return History(context);
  snapshot::DrillOptions options{.check = arguments.check, .cold = arguments.cold};
  STILL_ASSIGN_OR_RETURN(options.check_timeout, ParseDurationFlag(arguments.timeout));
  STILL_RETURN_IF_ERROR(ParsePatience(arguments.agent_timeout, options.patience));
  STILL_ASSIGN_OR_RETURN(uint64_t bandwidth, ParseSize(arguments.bandwidth));
  store::RepositoryOptions opened;
  std::optional<schedule::Throttle> throttle;
  std::optional<schedule::ThrottledFileSystem> slow;
  if (bandwidth > 0) {
    throttle.emplace(bandwidth, Clock::Real());
    slow.emplace(FileSystem::Real(), *throttle);
    opened.file_system = &*slow;
  }
  STILL_ASSIGN_OR_RETURN(auto repository, context.OpenRepository(opened));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Book> book, context.OpenBook(*repository));
  STILL_ASSIGN_OR_RETURN(const ChosenForDrill chosen, ChooseForDrill(context, *repository, arguments.words));
  const bool several = arguments.words.size() > 1 || (arguments.words.size() == 1 && IsPattern(arguments.words[0]));
  absl::Status error = chosen.error;
  nlohmann::json list = nlohmann::json::array();
  // One after the other: each is a machine with all its memory.
  for (const std::string& reference : chosen.references) {
    options.snapshot = reference;
    options.progress = context.MakeProgress();
    absl::StatusOr<DrillRecord> drill = snapshot::RunDrill(*repository, *book, context.sessions(), options);
    context.ProgressDone();
    error = WorstError(error, drill.ok() ? FailureOf(*drill) : drill.status());
    if (!drill.ok()) continue;
    list.push_back(ToJson(*drill));
    // At once: the next takes minutes.
    if (drill->state == DrillState::kPassed && !context.json()) std::cout << PassedText(*drill) << std::endl;
  }
  if (several || !list.empty()) context.Print(several ? list : list[0], [] {});
  return error;
}

}  // namespace

void AddDrillCommands(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<DrillArguments>();
  CLI::App* drill = context.AddCommand(app, "drill", "Restore a snapshot for a trial, check it, and remove it again",
                                       [=](Context& c) { return Drill(c, *arguments); });
  drill
      ->add_option("snapshots", arguments->words,
                   "Snapshots; sessions, or patterns of sessions: the newest of each (default: the newest of all)")
      ->type_name(kSnapshotType);
  drill->add_option("--check", arguments->check, "Command line for the guest's shell; passed when it ends with 0");
  drill->add_option("--timeout", arguments->timeout, "How long the check may take")->capture_default_str();
  drill->add_option("--agent-timeout", arguments->agent_timeout,
                    "The guest has its own identity within this time, or the drill fails (default: its agent answers "
                    "within 2m, and it has its identity within 6m)");
  drill->add_option("--bandwidth", arguments->bandwidth, "Bytes a second from the repository: 50M; 0: no limit")
      ->capture_default_str();
  drill->add_flag("--cold", arguments->cold, "Boot the disks instead of going on with the memory");
  drill->add_flag("--history", arguments->history, "List the drills there were");

  auto name = std::make_shared<std::string>();
  auto life_line = std::make_shared<int>(-1);
  CLI::App* janitor = context.AddHiddenCommand(app, "__janitor", "Removes a throw-away session whose maker is gone",
                                               [=](Context& c) -> absl::Status {
                                                 ::fcntl(*life_line, F_SETFD, FD_CLOEXEC);
                                                 return snapshot::RunJanitor(c.sessions(), *name, OwnedFd(*life_line));
                                               });
  janitor->add_option("session", *name)->required();
  janitor->add_option("--life-line-fd", *life_line)->required();
}

}  // namespace still::cli
