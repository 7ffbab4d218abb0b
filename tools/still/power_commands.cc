// start, stop, rm: of one session or of several.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/grpc_status.h"
#include "schedule/schedule.h"
#include "session/control/session_autostart.h"
#include "session/control/session_process.h"
#include "session/session_config.h"
#include "session/start_again.h"
#include "snapshot/lazy_disk.h"
#include "snapshot/rollback_journal.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

// From the end of a session's VM to the end of its process.
constexpr absl::Duration kEndTimeout = absl::Seconds(30);
// Beyond what the agent gets: for the hypervisor, and a disk server.
constexpr absl::Duration kStartAllowance = absl::Seconds(120);
constexpr size_t kAtOnce = 8;  // Each waits for its guest most of the time.

bool IsPattern(const std::string& word) { return word.find_first_of("*?") != std::string::npos; }

// The sessions that `words` name, in this order, each once. A pattern (*, ?) stands for all that it fits; NOT_FOUND when
// that is none. `beginnings`: the beginning of a name will do.
absl::StatusOr<std::vector<std::string>> ChooseSessions(const session::SessionRegistry& sessions,
                                                        const std::vector<std::string>& words, bool beginnings) {
  std::vector<std::string> chosen;
  auto choose = [&chosen](const std::string& name) {
    if (std::find(chosen.begin(), chosen.end(), name) == chosen.end()) chosen.push_back(name);
  };
  STILL_ASSIGN_OR_RETURN(std::vector<session::SessionEntry> entries, sessions.List());
  for (const std::string& word : words) {
    if (!IsPattern(word)) {
      absl::StatusOr<std::string> name = word;
      if (beginnings) name = sessions.Resolve(word);
      if (!name.ok()) return name.status();
      choose(*name);
      continue;
    }
    const size_t before = chosen.size();
    bool fits = false;
    for (const session::SessionEntry& entry : entries) {
      if (!schedule::MatchesPattern(entry.name, word)) continue;
      fits = true;
      choose(entry.name);
    }
    if (!fits) return absl::NotFoundError(absl::StrCat("no session fits \"", Printable(word), "\""));
    std::sort(chosen.begin() + static_cast<ptrdiff_t>(before), chosen.end());
  }
  return chosen;
}

// What was done with one session: for people, and as JSON.
struct Done {
  std::string sentence;
  nlohmann::json json;
};
using OnSession = std::function<absl::StatusOr<Done>(const std::string& name)>;

// Does it with all of them, several at once, also when it fails with one; the first error is returned, after the sentences
// about the others. JSON: of one name its object, of more, or a pattern, a list.
absl::Status WithEach(Context& context, const std::vector<std::string>& words, bool beginnings, size_t at_once,
                      const OnSession& action) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> names, ChooseSessions(context.sessions(), words, beginnings));
  std::vector<absl::StatusOr<Done>> results(names.size(), absl::CancelledError("not reached"));
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i; (i = next++) < names.size();) results[i] = action(names[i]);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(at_once, names.size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  context.ProgressDone();

  const bool several = words.size() > 1 || IsPattern(words[0]);
  nlohmann::json list = nlohmann::json::array();
  std::string sentences;
  absl::Status error;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].ok()) {
      error = FirstError(error, several ? Annotate(results[i].status(), names[i]) : results[i].status());
      continue;
    }
    list.push_back(std::move(results[i]->json));
    absl::StrAppend(&sentences, results[i]->sentence, "\n");
  }
  if (several || !list.empty()) {
    context.Print(several ? list : list[0], [&] { std::cout << sentences; });
  }
  return error;
}

// One that is not ready yet: nobody is there to be asked to power off.
absl::Status StopStarting(const session::SessionRegistry& sessions, const session::SessionEntry& entry) {
  absl::Status ended = session::EndSessionProcess(entry.directory);
  if (absl::IsNotFound(ended) && sessions.Find(entry.name).value_or(entry).alive) {
    return absl::FailedPreconditionError(
        absl::StrCat("session ", entry.name, " is still being made; end the command that makes it"));
  }
  return absl::IsNotFound(ended) ? absl::OkStatus() : ended;
}

nlohmann::json JsonOfEnd(const std::string& name, const std::optional<sessionpb::SessionEnd>& end) {
  nlohmann::json json = end.has_value() ? ToJson(*end) : nlohmann::json::object();
  json["name"] = name;
  return json;
}

absl::StatusOr<Done> StopOne(const session::SessionRegistry& sessions, const std::string& name, absl::Duration grace) {
  STILL_ASSIGN_OR_RETURN(session::SessionEntry entry, sessions.Find(name));
  if (!entry.alive) {
    return Done{absl::StrCat("session ", name, " was not running",
                             entry.end.has_value() ? ": " + session::DescribeEnd(*entry.end) : ""),
                JsonOfEnd(name, entry.end)};
  }
  sessionpb::SessionEnd end;
  if (!entry.ready) {
    STILL_RETURN_IF_ERROR(StopStarting(sessions, entry));
    end.set_kind(sessionpb::SessionEnd::STOPPED);
  } else {
    STILL_ASSIGN_OR_RETURN(auto stub, sessions.Connect(name));
    sessionpb::StopRequest request;
    request.set_grace_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(grace)));
    grpc::ClientContext call;
    STILL_RETURN_IF_ERROR(FromGrpc(stub->Stop(&call, request, &end)));
  }
  // Its process too: whoever stopped it may remove it, or start it again.
  STILL_RETURN_IF_ERROR(sessions.AwaitGone(name, kEndTimeout));
  return Done{absl::StrCat("session ", name, " ", session::DescribeEnd(end)), JsonOfEnd(name, end)};
}

absl::StatusOr<Done> RemoveOne(const session::SessionRegistry& sessions, const std::string& name) {
  STILL_RETURN_IF_ERROR(sessions.Remove(name));
  STILL_RETURN_IF_ERROR(session::DisableAutostart(sessions, name));
  return Done{absl::StrCat("session ", name, " removed"), {{"removed", name}}};
}

struct StartArguments {
  std::vector<std::string> names;
  std::string agent_timeout;  // Empty: as it was started last.
  bool stay = false;
};

absl::StatusOr<Done> StartOne(Context& context, const StartArguments& arguments,
                              std::optional<absl::Duration> agent_timeout, const std::string& name) {
  const session::SessionRegistry sessions = context.sessions();
  STILL_ASSIGN_OR_RETURN(session::SessionEntry entry, sessions.Find(name));
  if (entry.ready) {
    return Done{absl::StrCat("session ", name, " is running already"), {{"name", name}, {"started", false}}};
  }
  const absl::StatusOr<sessionpb::SessionStart> last = session::ReadSessionStart(entry.directory);
  STILL_ASSIGN_OR_RETURN(sessionpb::SessionConfig config,
                         session::ConfigToStartAgain(entry.config, last.ok() ? std::optional(*last) : std::nullopt));
  if (agent_timeout.has_value()) {
    config.set_agent_deadline_s(static_cast<uint32_t>(absl::ToInt64Seconds(*agent_timeout)));
  }
  STILL_RETURN_IF_ERROR(session::ValidateConfig(config, /*has_ram=*/false));
  OwnedFd secret;
  if (config.has_disk_server()) {
    STILL_ASSIGN_OR_RETURN(store::Credentials credentials, context.GivenCredentials());
    STILL_ASSIGN_OR_RETURN(secret, snapshot::DiskSecret({.passphrase = credentials.passphrase}));
  }
  STILL_ASSIGN_OR_RETURN(sessionpb::LaunchReport report,
                         sessions.Launch(config, {.timeout = absl::Seconds(config.agent_deadline_s()) + kStartAllowance,
                                                  .disk_secret_fd = secret.get(),
                                                  .own_unit = !arguments.stay}));
  Done done{absl::StrCat("session ", name, " is running"), {{"name", name}, {"started", true}}};
  for (const std::string& warning : report.warnings()) {
    absl::StrAppend(&done.sentence, "\n  note: ", Printable(warning));
    done.json["warnings"].push_back(warning);
  }
  return done;
}

absl::Status Start(Context& context, const StartArguments& arguments) {
  std::optional<absl::Duration> agent_timeout;
  if (!arguments.agent_timeout.empty()) {
    STILL_ASSIGN_OR_RETURN(agent_timeout, ParseDurationFlag(arguments.agent_timeout));
  }
  snapshot::SweepRollbacks(context.sessions());
  snapshot::ProgressSink progress = context.MakeProgress();
  progress({.stage = "boot"});
  return WithEach(context, arguments.names, /*beginnings=*/false, kAtOnce,
                  [&](const std::string& name) { return StartOne(context, arguments, agent_timeout, name); });
}

void AddStart(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<StartArguments>();
  CLI::App* start = context.AddCommand(app, "start", "Start a session again that has ended: its disks boot",
                                       [arguments](Context& c) { return Start(c, *arguments); });
  start->add_option("sessions", arguments->names, "Whole names, or patterns: 'fork-*'")
      ->required()
      ->type_name(kExactSessionType);
  start->add_option("--agent-timeout", arguments->agent_timeout,
                    "How long to wait for the guest's agent; 0: not at all (default: as last time)");
  start->add_flag("--stay", arguments->stay, "Stay in the control group of whoever starts it: for units of systemd");
}

}  // namespace

void AddPowerCommands(CLI::App& app, Context& context) {
  AddStart(app, context);

  auto names = std::make_shared<std::vector<std::string>>();
  auto grace_text = std::make_shared<std::string>("10s");
  auto force = std::make_shared<bool>(false);
  CLI::App* stop = context.AddCommand(
      app, "stop", "End sessions: the guests are asked to power off first", [=](Context& c) -> absl::Status {
        STILL_ASSIGN_OR_RETURN(absl::Duration grace, ParseDurationFlag(*grace_text));
        if (*force) grace = absl::ZeroDuration();
        return WithEach(c, *names, /*beginnings=*/true, kAtOnce,
                        [&](const std::string& name) { return StopOne(c.sessions(), name, grace); });
      });
  stop->add_option("sessions", *names, "Names, beginnings of them, or patterns: 'fork-*'")
      ->required()
      ->type_name(kExactSessionType);
  stop->add_option("--grace", *grace_text, "How long the guests get")->capture_default_str();
  stop->add_flag("--force", *force, "Do not ask the guests");

  CLI::App* rm = context.AddCommand(
      app, "rm", "Delete ended sessions, with their restored disks", [=](Context& c) -> absl::Status {
        snapshot::SweepRollbacks(c.sessions());
        return WithEach(c, *names, /*beginnings=*/false, 1,
                        [&](const std::string& name) { return RemoveOne(c.sessions(), name); });
      });
  rm->add_option("sessions", *names, "Whole names, or patterns: 'fork-*'")->required()->type_name(kExactSessionType);
}

}  // namespace still::cli
