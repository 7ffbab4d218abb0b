// start, stop, rm: of one session or of several.
#include <grpcpp/grpcpp.h>

#include <iostream>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "proto/grpc_status.h"
#include "session/control/session_autostart.h"
#include "session/control/session_process.h"
#include "session/session_config.h"
#include "session/start_again.h"
#include "snapshot/lazy_disk.h"
#include "snapshot/rollback_journal.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/each_session.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

// From the end of a session's VM to the end of its process.
constexpr absl::Duration kEndTimeout = absl::Seconds(30);
// One that works answers in milliseconds.
constexpr absl::Duration kAnswerTimeout = absl::Seconds(10);
// Beyond what the guest gets: QEMU flushes its disks when it ends.
constexpr absl::Duration kStopAllowance = absl::Minutes(5);
// Beyond what the agent gets: for the hypervisor, and a disk server.
constexpr absl::Duration kStartAllowance = absl::Seconds(120);
constexpr size_t kAtOnce = 8;  // Each waits for its guest most of the time.

// One that is not ready yet: nobody is there to be asked to power off.
absl::Status StopStarting(const session::SessionRegistry& sessions, const session::SessionEntry& entry) {
  absl::Status ended = session::EndSessionProcess(entry.directory);
  if (absl::IsNotFound(ended) && sessions.Find(entry.name).value_or(entry).alive) {
    return absl::FailedPreconditionError(
        absl::StrCat("session ", entry.name, " is still being made; end the command that makes it"));
  }
  return absl::IsNotFound(ended) ? absl::OkStatus() : ended;
}

absl::Status ExpectAnswer(sessionpb::SessionControl::Stub& stub) {
  grpc::ClientContext call;
  call.set_deadline(absl::ToChronoTime(Clock::Real().Now() + kAnswerTimeout));
  sessionpb::DescribeResponse ignored;
  return FromGrpc(stub.Describe(&call, {}, &ignored));
}

// What ends a session whose process hangs: the process. The hypervisor ends with it.
absl::Status StopSilent(const session::SessionEntry& entry, bool force) {
  if (!force) {
    return absl::DeadlineExceededError(absl::StrCat("session ", entry.name, " does not answer; `still stop --force ",
                                                    entry.name, "` ends its process"));
  }
  absl::Status ended = session::EndSessionProcess(entry.directory);
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
    call.set_deadline(absl::ToChronoTime(Clock::Real().Now() + grace + kStopAllowance));
    absl::Status stopped = ExpectAnswer(*stub);
    if (stopped.ok()) stopped = FromGrpc(stub->Stop(&call, request, &end));
    if (absl::IsDeadlineExceeded(stopped)) {
      stopped = StopSilent(entry, grace == absl::ZeroDuration());
      end.set_kind(sessionpb::SessionEnd::STOPPED);
    }
    STILL_RETURN_IF_ERROR(stopped);
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
  if (entry.alive && entry.end.has_value()) {
    // Its VM has ended, its process is about to.
    STILL_RETURN_IF_ERROR(sessions.AwaitGone(name, kEndTimeout));
    STILL_ASSIGN_OR_RETURN(entry, sessions.Find(name));
  }
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
  return WithEachSession(context, arguments.names, /*beginnings=*/false, kAtOnce,
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
        return WithEachSession(c, *names, /*beginnings=*/true, kAtOnce,
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
        return WithEachSession(c, *names, /*beginnings=*/false, 1,
                               [&](const std::string& name) { return RemoveOne(c.sessions(), name); });
      });
  rm->add_option("sessions", *names, "Whole names, or patterns: 'fork-*'")->required()->type_name(kExactSessionType);
}

}  // namespace still::cli
