// run, ps, exec, logs, resume, thaw.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/absolute_path.h"
#include "base/file.h"
#include "base/quantity.h"
#include "base/random.h"
#include "base/undo.h"
#include "proto/grpc_status.h"
#include "session/control/describe_all.h"
#include "session/control/session_autostart.h"
#include "session/session_config.h"
#include "snapshot/rollback_journal.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/disk_argument.h"
#include "tools/still/each_session.h"
#include "tools/still/format.h"
#include "tools/still/lazy_disks.h"
#include "tools/still/standard_streams.h"
#include "tools/still/table.h"

namespace still::cli {
namespace {

using sessionpb::SessionConfig;

struct RunArguments {
  std::string name;
  std::string kernel;
  std::string initrd;
  std::string cmdline;
  std::vector<std::string> disks;
  std::string memory = "512M";
  uint32_t vcpus = 1;
  std::string accelerator = "auto";
  std::string firmware;
  bool qga = false;
  std::string cpu_model;
  std::string vsock = "auto";
  std::string port = "auto";
  bool network = false;
  bool no_agent = false;
  std::string agent_timeout = "60s";
  std::string time_limit = "0";
  bool autostart = false;
};

absl::StatusOr<std::string> Absolute(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(path));
  return std::filesystem::path(absolute).lexically_normal().string();
}

absl::StatusOr<SessionConfig::VsockBackend> ParseVsock(const std::string& text) {
  if (text == "auto") return SessionConfig::AUTOMATIC;
  if (text == "kernel") return SessionConfig::KERNEL;
  if (text == "userspace") return SessionConfig::USERSPACE;
  if (text == "off") return SessionConfig::OFF;
  return absl::InvalidArgumentError(absl::StrCat("vsock \"", text, "\": use auto, kernel, userspace or off"));
}

absl::StatusOr<SessionConfig> ConfigOf(const RunArguments& arguments) {
  SessionConfig config;
  config.set_name(arguments.name);
  config.set_id(RandomUuid());
  manifestpb::Machine& machine = *config.mutable_machine();
  machine.set_vcpus(arguments.vcpus);
  STILL_ASSIGN_OR_RETURN(uint64_t memory, ParseSize(arguments.memory));
  machine.set_memory_bytes(memory);
  machine.set_accelerator(arguments.accelerator == "auto" ? "" : arguments.accelerator);
  machine.set_cpu_model(arguments.cpu_model);
  const bool is_path = absl::StrContains(arguments.firmware, '/');
  machine.set_firmware(arguments.firmware);
  if (is_path) {
    STILL_ASSIGN_OR_RETURN(*machine.mutable_firmware(), Absolute(arguments.firmware));
  }
  machine.set_cmdline(arguments.cmdline);
  machine.set_direct_kernel(!arguments.kernel.empty());
  STILL_ASSIGN_OR_RETURN(*config.mutable_kernel(), Absolute(arguments.kernel));
  STILL_ASSIGN_OR_RETURN(*config.mutable_initrd(), Absolute(arguments.initrd));
  for (const std::string& disk : arguments.disks) STILL_RETURN_IF_ERROR(AddDisk(disk, config));
  if (arguments.network) {
    manifestpb::Nic& nic = *machine.add_nics();
    nic.set_name("net0");
    nic.set_mac(session::RandomMac());
    nic.set_kind("user");
  }
  config.set_qga_port(arguments.qga);
  STILL_ASSIGN_OR_RETURN(SessionConfig::VsockBackend vsock, ParseVsock(arguments.vsock));
  config.set_vsock_backend(vsock);
  uint32_t port = 0;
  if (arguments.port != "auto" && (!absl::SimpleAtoi(arguments.port, &port) || port == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("vsock port \"", arguments.port, "\": use auto or a number from 1 on"));
  }
  machine.set_vsock_port(port);
  STILL_ASSIGN_OR_RETURN(absl::Duration agent, ParseDurationFlag(arguments.agent_timeout));
  bool wait_for_agent = !arguments.no_agent && vsock != SessionConfig::OFF;
  config.set_agent_deadline_s(wait_for_agent ? static_cast<uint32_t>(absl::ToInt64Seconds(agent)) : 0);
  STILL_ASSIGN_OR_RETURN(absl::Duration limit, ParseDurationFlag(arguments.time_limit));
  config.set_time_limit_s(static_cast<uint32_t>(absl::ToInt64Seconds(limit)));
  return config;
}

absl::Status Run(Context& context, const RunArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(SessionConfig config, ConfigOf(arguments));
  STILL_RETURN_IF_ERROR(session::CheckOrdinaryName(config.name()));
  STILL_RETURN_IF_ERROR(session::ValidateConfig(config, /*has_ram=*/false));
  session::SessionRegistry sessions = context.sessions();
  snapshot::SweepRollbacks(sessions);
  STILL_ASSIGN_OR_RETURN(session::SessionPlace place, sessions.Create(arguments.name));
  UndoStack undo;
  undo.Push("remove the session's directory", [&place] { return RemoveTree(place.directory); });
  if (arguments.autostart) {
    STILL_RETURN_IF_ERROR(session::EnableAutostart(sessions, arguments.name));
    undo.Push("let it not start with the host", [&] { return session::DisableAutostart(sessions, arguments.name); });
  }
  snapshot::ProgressSink progress = context.MakeProgress();
  progress({.stage = "start"});
  auto launched = sessions.Launch(config, {.timeout = absl::Seconds(config.agent_deadline_s() + 60),
                                           .lock_fd = place.lock.get(),
                                           .own_unit = true,
                                           .on_step = [&](const std::string& step) { progress({.stage = step}); }});
  context.ProgressDone();
  STILL_RETURN_IF_ERROR(launched.status());
  undo.Disarm();
  context.Print({{"name", arguments.name}, {"id", config.id()}, {"directory", place.directory}},
                [&] { std::cout << "session " << arguments.name << " is running\n"; });
  return absl::OkStatus();
}

// A session answers at once or hangs.
constexpr absl::Duration kAnswerWithin = absl::Seconds(5);

std::string StateName(const session::SessionEntry& entry, const sessionpb::DescribeResponse* description) {
  if (entry.ready && description != nullptr) {
    return LazyDiskState(*description)
        .value_or(description->state() == sessionpb::DescribeResponse::PAUSED ? "paused" : "running");
  }
  if (entry.ready) return "not answering";
  if (entry.alive) return entry.end.has_value() ? "ending" : "starting";
  return entry.end.has_value() ? session::DescribeEnd(*entry.end) : "gone";
}

Tone ToneOf(const session::SessionEntry& entry, const std::string& state) {
  if (entry.alive) return state == "running" ? Tone::kGood : Tone::kWarning;
  return entry.end.has_value() && session::EndedOnPurpose(*entry.end) ? Tone::kFaint : Tone::kBad;
}

absl::Status Ps(Context& context, const std::vector<std::string>& words) {
  session::SessionRegistry sessions = context.sessions();
  STILL_ASSIGN_OR_RETURN(std::vector<session::SessionEntry> entries, sessions.List());
  Table table({"NAME", "STATE", "HYPERVISOR", "MEMORY", "CPUS", "AGENT", "FROM"});
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::string> troubles;
  // All at once, so that those that hang do not add up.
  std::vector<std::string> ready;
  for (const session::SessionEntry& entry : entries) {
    if (entry.ready) ready.push_back(entry.name);
  }
  auto answers = session::DescribeAll(sessions, ready, kAnswerWithin);
  std::map<std::string, absl::StatusOr<sessionpb::DescribeResponse>> descriptions;
  for (size_t i = 0; i < ready.size(); ++i) descriptions.emplace(ready[i], std::move(answers[i]));
  for (const session::SessionEntry& entry : entries) {
    if (!FitsOneOf(words, entry.name)) continue;
    sessionpb::DescribeResponse description;
    absl::Status described = absl::UnavailableError("not running");
    if (auto answer = descriptions.find(entry.name); answer != descriptions.end()) {
      described = answer->second.status();
      if (described.ok()) {
        description = *std::move(answer->second);
      } else {
        troubles.push_back(absl::StrCat(entry.name, ": ", Printable(std::string(described.message()))));
      }
    }
    const std::string state = StateName(entry, described.ok() ? &description : nullptr);
    const std::string reboots =
        description.reboots() > 0 ? absl::StrCat(", rebooted ", description.reboots(), "x") : "";
    nlohmann::json item = described.ok() ? ToJson(description) : nlohmann::json{{"name", entry.name}};
    item["status"] = state;
    if (entry.end.has_value()) item["end"] = ToJson(*entry.end);
    if (!description.disk_trouble().empty()) {
      troubles.push_back(absl::StrCat(entry.name, ": ", Printable(description.disk_trouble())));
    }
    if (!description.found_paused().empty()) {
      troubles.push_back(absl::StrCat(entry.name, ": ", Printable(description.found_paused())));
    }
    list.push_back(std::move(item));
    const manifestpb::Machine& machine = entry.config.machine();
    table.Add({entry.name,
               {state + reboots, ToneOf(entry, state)},
               described.ok() ? absl::StrCat(description.hypervisor(), " ", description.accelerator()) : "-",
               FormatBytes(machine.memory_bytes()),
               absl::StrCat(machine.vcpus()),
               described.ok() && description.agent().connected() ? description.agent().version() : "-",
               entry.config.origin_snapshot().empty() ? "-" : entry.config.origin_snapshot().substr(0, 12)});
  }
  context.Print(list, [&] {
    std::cout << table.ForTerminal();
    for (const std::string& line : troubles) std::cout << line << "\n";
  });
  return absl::OkStatus();
}

struct ExecArguments {
  std::string session;
  std::vector<std::string> command;
  std::string timeout = "60s";
};

absl::Status Exec(Context& context, const ExecArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(absl::Duration timeout, ParseDurationFlag(arguments.timeout));
  STILL_ASSIGN_OR_RETURN(auto stub, context.sessions().Connect(arguments.session));
  guestpb::ExecRequest request;
  request.mutable_argv()->Assign(arguments.command.begin(), arguments.command.end());
  request.set_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(timeout)));
  grpc::ClientContext call;
  auto reader = stub->Exec(&call, request);
  guestpb::ExecOutput output;
  guestpb::ExecExit exit;
  std::string out_text;
  std::string err_text;
  while (reader->Read(&output)) {
    if (output.has_exit()) exit = output.exit();
    if (context.json()) {
      out_text += output.stdout_data();
      err_text += output.stderr_data();
      continue;
    }
    // Whoever read it has seen enough: the program is not waited for, and ends as whatever writes into a closed pipe.
    if (!WriteStandardOutput(output.stdout_data())) return absl::OkStatus();
    const int error_number = WriteStandardError(output.stderr_data());
    if (error_number == EPIPE) {
      context.set_exit_code(128 + SIGPIPE);
      return absl::OkStatus();
    }
    if (error_number != 0) return ErrnoStatus(error_number, "write standard error");
  }
  STILL_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  if (exit.timed_out()) {
    return absl::DeadlineExceededError(
        absl::StrCat("the command ran longer than ", arguments.timeout, " and was killed"));
  }
  context.Print(
      {{"exit_code", exit.exit_code()}, {"signal", exit.signal()}, {"stdout", out_text}, {"stderr", err_text}}, [] {});
  context.set_exit_code(exit.signal() != 0 ? 128 + exit.signal() : exit.exit_code());
  return absl::OkStatus();
}

struct LogsArguments {
  std::vector<std::string> sessions;
  bool own = false;
};

absl::StatusOr<std::string> ReadLog(const session::SessionRegistry& sessions, const std::string& name, bool own) {
  STILL_ASSIGN_OR_RETURN(session::SessionEntry entry, sessions.Find(name));
  constexpr size_t kMaxLogBytes = 64 << 20;
  return ReadFile(JoinPath(entry.directory, own ? "session.log" : "console.log"), kMaxLogBytes);
}

absl::Status Logs(Context& context, const LogsArguments& arguments) {
  const session::SessionRegistry sessions = context.sessions();
  const ChosenSessions chosen = ChooseSessions(sessions, arguments.sessions, /*beginnings=*/true);
  const bool several = arguments.sessions.size() > 1 || IsPattern(arguments.sessions[0]);
  nlohmann::json list = nlohmann::json::array();
  absl::Status error = chosen.error;
  for (const std::string& name : chosen.names) {
    absl::StatusOr<std::string> text = ReadLog(sessions, name, arguments.own);
    error = WorstError(error, several ? Annotate(text.status(), name) : text.status());
    if (!text.ok()) continue;
    if (context.json()) {
      list.push_back({{"name", name}, {"log", *std::move(text)}});
      continue;
    }
    // A console is the guest's: raw bytes for a file or a pipe, but nothing that drives a terminal.
    if (::isatty(STDOUT_FILENO) != 0) text = PrintableLines(*text);
    if (several) std::cout << (name == chosen.names[0] ? "" : "\n") << "==> " << name << " <==\n";  // As tail(1).
    if (!WriteStandardOutput(*text)) break;
  }
  if (several || !list.empty()) context.Print(several ? list : list[0], [] {});
  return error;
}

absl::StatusOr<Done> ThawOne(const session::SessionRegistry& sessions, const std::string& name, bool force) {
  STILL_ASSIGN_OR_RETURN(auto stub, sessions.Connect(name));
  grpc::ClientContext call;
  sessionpb::ThawRequest request;
  request.set_force(force);
  guestpb::ThawResponse response;
  STILL_RETURN_IF_ERROR(FromGrpc(stub->Thaw(&call, request, &response)));
  return Done{
      absl::StrCat("session ", name, ": ",
                   response.cause() == guestpb::NOT_FROZEN ? "nothing was frozen"
                                                           : absl::StrCat(response.thawed(), " file systems thawed")),
      ToJson(response)};
}

absl::StatusOr<Done> ResumeOne(const session::SessionRegistry& sessions, const std::string& name) {
  STILL_ASSIGN_OR_RETURN(auto stub, sessions.Connect(name));
  grpc::ClientContext call;
  sessionpb::ResumeResponse response;
  STILL_RETURN_IF_ERROR(FromGrpc(stub->Resume(&call, {}, &response)));
  return Done{absl::StrCat("session ", name, response.was_paused() ? " goes on" : " was not paused"),
              {{"was_paused", response.was_paused()}}};
}

void AddRun(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<RunArguments>();
  CLI::App* run = context.AddCommand(app, "run", "Start a VM as a new session",
                                     [arguments](Context& c) { return Run(c, *arguments); });
  run->add_option("name", arguments->name, "Name of the session")->required()->type_name(kNameType);
  run->add_option("--kernel", arguments->kernel, "Kernel to boot (else the first disk is booted)")
      ->type_name(kFileType);
  run->add_option("--initrd", arguments->initrd, "Initial RAM disk")->type_name(kFileType);
  run->add_option("--append", arguments->cmdline, "Added to the kernel command line");
  run->add_option("--disk", arguments->disks, "PATH[,name=vda][,format=raw|qcow2][,serial=S][,ro]; may be repeated")
      ->type_name(kFileType);
  run->add_option("--memory", arguments->memory, "Memory size")->capture_default_str();
  run->add_option("--cpus", arguments->vcpus, "Number of virtual cpus")->capture_default_str();
  run->add_option("--accel", arguments->accelerator, "auto, kvm or tcg")->capture_default_str();
  run->add_option("--cpu-model", arguments->cpu_model, "Cpu model (default: the best there is)");
  run->add_option("--firmware", arguments->firmware, "qboot, seabios or a file's path (default: what suits)");
  run->add_option("--vsock", arguments->vsock, "auto, kernel, userspace or off")->capture_default_str();
  run->add_option("--vsock-port", arguments->port, "Port the guest's agent dials")->capture_default_str();
  run->add_flag("--net", arguments->network, "A network card behind the hypervisor's own NAT");
  run->add_flag("--qga", arguments->qga,
                "A port to the QEMU guest agent, which thaws where still-agent does not answer");
  run->add_flag("--no-agent", arguments->no_agent, "Do not wait for the guest's agent");
  run->add_option("--agent-timeout", arguments->agent_timeout, "How long to wait for it")->capture_default_str();
  run->add_option("--time-limit", arguments->time_limit, "End the session after this long (0: never)")
      ->capture_default_str();
  run->add_flag("--autostart", arguments->autostart,
                "Start it with the host, too (root under systemd: still-session@NAME.service)");
}

}  // namespace

void AddSessionCommands(CLI::App& app, Context& context) {
  AddRun(app, context);
  auto names = std::make_shared<std::vector<std::string>>();
  CLI::App* ps = context.AddCommand(app, "ps", "List sessions", [=](Context& c) { return Ps(c, *names); });
  ps->add_option("sessions", *names, "Only these: names, or patterns: 'fork-*'")->type_name(kExactSessionType);

  auto exec_arguments = std::make_shared<ExecArguments>();
  CLI::App* exec = context.AddCommand(app, "exec", "Run a program in the guest; exits with its exit code",
                                      [=](Context& c) { return Exec(c, *exec_arguments); });
  exec->add_option("--timeout", exec_arguments->timeout, "Kill it after this long")->capture_default_str();
  exec->add_option("session", exec_arguments->session, "Its name, or the beginning of it")
      ->required()
      ->type_name(kSessionType);
  exec->add_option("command", exec_arguments->command, "Program and arguments (write -- before them)")->required();
  exec->prefix_command(false);

  auto logs_arguments = std::make_shared<LogsArguments>();
  CLI::App* logs =
      context.AddCommand(app, "logs", "Print sessions' consoles", [=](Context& c) { return Logs(c, *logs_arguments); });
  logs->add_option("sessions", logs_arguments->sessions, "Names, beginnings of them, or patterns: 'fork-*'")
      ->required()
      ->type_name(kExactSessionType);
  logs->add_flag("--session-log", logs_arguments->own, "still-session's own log instead");

  CLI::App* resume = context.AddCommand(app, "resume", "Let sessions go on that were left paused", [=](Context& c) {
    return WithEachSession(c, *names, /*beginnings=*/true, 1,
                           [&](const std::string& one) { return ResumeOne(c.sessions(), one); });
  });

  auto thaw_force = std::make_shared<bool>(false);
  CLI::App* thaw = context.AddCommand(app, "thaw", "Thaw whatever is frozen in the guests", [=](Context& c) {
    return WithEachSession(c, *names, /*beginnings=*/true, 1,
                           [&](const std::string& one) { return ThawOne(c.sessions(), one, *thaw_force); });
  });
  thaw->add_flag("--force", *thaw_force,
                 "Also while a snapshot is being taken, which may cost it its consistency label");
  for (CLI::App* command : {resume, thaw}) {
    command->add_option("sessions", *names, "Names, beginnings of them, or patterns: 'fork-*'")
        ->required()
        ->type_name(kExactSessionType);
  }
}

}  // namespace still::cli
