#include "session/hypervisor/qemu/qemu_vm.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "session/hypervisor/memory_ways.h"
#include "session/hypervisor/qemu/capture_sweep.h"
#include "session/hypervisor/qemu/qemu_capture.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_confinement.h"
#include "session/hypervisor/qemu/qemu_cpu.h"
#include "session/hypervisor/qemu/qemu_lazy_disk.h"
#include "session/hypervisor/qemu/qemu_machine.h"
#include "session/hypervisor/qemu/qemu_memory.h"
#include "session/hypervisor/qemu/qemu_process.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

using nlohmann::json;

// Long, for hosts that swap: a hypervisor that cannot start ends, which is noticed at once.
constexpr absl::Duration kHandshakeDeadline = absl::Seconds(60);
constexpr absl::Duration kIncomingDeadline = absl::Seconds(60);
constexpr absl::Duration kLastWordsDeadline = absl::Seconds(2);  // For QEMU's exit after its socket has closed.
constexpr absl::Duration kQuitGrace = absl::Seconds(2);          // Closing qcow2 files stores their bitmaps.
// To write a GiB of memory while the VM stands still: the slow end of what was measured (benchmarks/BUDGETS.md, "Stall").
constexpr absl::Duration kStoppedPerGib = absl::Seconds(1);
constexpr char kIncomingFd[] = "still-incoming";

class QemuVm : public Vm {
 public:
  QemuVm(std::unique_ptr<QemuProcess> process, std::shared_ptr<QemuMachine> machine, VmDescription description,
         std::vector<std::string> nics)
      : machine_(std::move(machine)),
        description_(std::move(description)),
        nics_(std::move(nics)),
        lazy_disks_(machine_),
        process_(std::move(process)) {}
  ~QemuVm() override {
    Kill();
    (void)process_->Wait(absl::InfiniteDuration());
  }

  const Capabilities& capabilities() const override { return machine_->capabilities; }
  const VmDescription& description() const override { return description_; }
  absl::StatusOr<bool> IsPaused() override { return QueryPaused(*machine_->qmp); }
  absl::Status Resume() override { return machine_->run_state.Resume(*machine_->qmp); }
  absl::StatusOr<std::optional<Standstill>> FindStandstill() override {
    return machine_->run_state.Find(*machine_->qmp, machine_->disks, machine_->command_deadline);
  }
  absl::Status Tidy() override {
    if (!machine_->unswept || machine_->capture_active.exchange(true)) return absl::OkStatus();
    absl::Status swept = SweepCaptures(*machine_);
    machine_->unswept = !swept.ok();
    machine_->capture_active = false;
    return swept;
  }

  LazyDisks* lazy_disks() override { return lazy_disks_.empty() ? nullptr : &lazy_disks_; }

  absl::Status SetLink(const std::string& nic, bool up) override {
    if (std::find(nics_.begin(), nics_.end(), nic) == nics_.end()) {
      return absl::NotFoundError(absl::StrCat("no network card ", nic));
    }
    return machine_->qmp->Run("set_link", {{"name", nic}, {"up", up}}, kCommandDeadline);
  }

  absl::StatusOr<std::unique_ptr<VmCapture>> PrepareCapture(const CaptureOptions& options,
                                                            OwnedFd memory_sink) override {
    STILL_ASSIGN_OR_RETURN(std::optional<Standstill> standstill, FindStandstill());
    if (standstill.has_value() && standstill->kind == Standstill::Kind::kHeld) {
      return absl::UnavailableError("the guest is held because a disk cannot be read or written; see `still ps`");
    }
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<VmCapture> capture,
                           PrepareQemuCapture(machine_, options, std::move(memory_sink)));
    // Not before: a look at the disks wakes what rests while no capture is under way.
    if (!lazy_disks_.empty()) lazy_disks_.Rest();
    return capture;
  }

  void Kill() override {
    process_->KillAfter(kQuitGrace);
    machine_->qmp->Post("quit");
  }

  ProcessExit WaitForExit() override { return process_->Wait(absl::InfiniteDuration()).value_or(ProcessExit{}); }
  bool guest_shut_down() const override { return machine_->guest->shut_down; }

 private:
  const std::shared_ptr<QemuMachine> machine_;
  const VmDescription description_;
  const std::vector<std::string> nics_;
  QemuLazyDisks lazy_disks_;
  const std::unique_ptr<QemuProcess> process_;
};

// Files that QEMU would complain about less clearly.
absl::Status CheckFiles(const VmConfig& config) {
  struct Wanted {
    std::string what;
    std::string path;
    int flags;
  };
  std::vector<Wanted> files;
  if (!config.kernel.empty()) files.push_back({"kernel", config.kernel, O_RDONLY});
  if (!config.initrd.empty()) files.push_back({"initrd", config.initrd, O_RDONLY});
  for (const DiskConfig& disk : config.disks) {
    files.push_back({absl::StrCat("disk ", disk.name), disk.path, disk.read_only ? O_RDONLY : O_RDWR});
  }
  for (const Wanted& file : files) {
    struct stat info {};
    if (::stat(file.path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
      return absl::InvalidArgumentError(absl::StrCat(file.what, ": ", file.path, " is a directory"));
    }
    if (auto opened = OpenFile(file.path, file.flags | O_NONBLOCK); !opened.ok()) {
      return Annotate(opened.status(), file.what);
    }
  }
  return absl::OkStatus();
}

// The line of QEMU's last words that says what was wrong, without its program name and options.
absl::Status StatusOfLastWords(absl::string_view tail, const absl::Status& otherwise) {
  std::string reason;
  for (absl::string_view line : absl::StrSplit(tail, '\n', absl::SkipWhitespace())) {
    if (!absl::StrContains(line, "warning:")) reason = std::string(absl::StripAsciiWhitespace(line));
  }
  if (reason.empty()) return otherwise;
  absl::string_view text = reason;
  if (size_t colon = text.find(": ");
      colon != absl::string_view::npos && absl::StrContains(text.substr(0, colon), "qemu")) {
    text.remove_prefix(colon + 2);
  }
  if (absl::StrContains(tail, "another process using the image")) {
    return absl::FailedPreconditionError(absl::StrCat("a disk is in use by another process (QEMU: ", text, ")"));
  }
  return absl::FailedPreconditionError(absl::StrCat("QEMU did not start: ", text));
}

absl::StatusOr<VmDescription> Describe(QmpClient& qmp, const VmConfig& config) {
  VmDescription description{.hypervisor = "qemu",
                            .machine_type = MachineTypeOf(config),
                            .cpu_model = CpuModelOf(config),
                            .accelerator = config.accelerator,
                            .firmware = FirmwareOf(config),
                            .ram_block = kRamBlock,
                            .device_state_format = "qemu-migration-3",
                            .generation_id = HasGenerationId(config),
                            .devices = DevicesOf(config),
                            .disk_addresses = DiskAddressesOf(config)};
  STILL_ASSIGN_OR_RETURN(json version, qmp.Execute("query-version", json::object(), kCommandDeadline));
  const json& numbers = Member(version, "qemu");
  description.version = absl::StrCat(Member(numbers, "major").dump(), ".", Member(numbers, "minor").dump(), ".",
                                     Member(numbers, "micro").dump());
  // An alias ("q35") stands for another machine in the next version.
  STILL_ASSIGN_OR_RETURN(json type,
                         qmp.Execute("qom-get", {{"path", "/machine"}, {"property", "type"}}, kCommandDeadline));
  if (type.is_string()) {
    description.machine_type = std::string(absl::StripSuffix(type.get<std::string>(), "-machine"));
  }
  if (config.accelerator == "kvm") {
    absl::StatusOr<GuestCpu> cpu = QueryGuestCpu(qmp, description.cpu_model);
    if (cpu.ok()) {
      description.cpu = *std::move(cpu);
    } else {
      LogWarning("not known what processor the guest has", {{"error", cpu.status().ToString()}});
    }
  }
  return description;
}

// Whether the memory engine can save this machine's memory; without it, it is saved as QEMU does.
void TakeMemory(QemuMachine& machine, MemoryHandover& handover) {
  std::string& reason = machine.capabilities.engine_memory_reason;
  reason = handover.reason();
  if (!handover.wanted()) return;
  absl::StatusOr<QemuMemory> memory = handover.Take(machine.pid);
  if (memory.ok()) {
    machine.memory = *std::move(memory);
    return;
  }
  reason = std::string(memory.status().message());
  LogInfo("no memory engine for this machine", {{"why", reason}});
}

// Why QEMU refused background-snapshot, and what would change it.
std::string ExplainRefusal(const absl::Status& refused) {
  if (!absl::StrContains(refused.message(), "host kernel")) return std::string(refused.message());
  return absl::StrCat("userfaultfd: ", UserfaultfdReason());
}

absl::Status QueryCapabilities(QemuMachine& machine, const QemuOptions& options, MemoryHandover& handover) {
  machine.capabilities = {
      .memory = true,
      .stopped_memory_pause = kStoppedPerGib * (static_cast<double>(machine.memory_bytes) / (uint64_t{1} << 30)),
      .disk_pin = true,
      .incremental_disk = true};
  TakeMemory(machine, handover);
  if (!options.background_memory) {
    machine.capabilities.background_memory_reason = "switched off";
    return absl::OkStatus();
  }
  absl::Status accepted = SetMigrationCapabilities(*machine.qmp, {{"background-snapshot", true}});
  if (!machine.qmp->connected()) return accepted;
  machine.capabilities.background_memory = accepted.ok();
  if (!accepted.ok()) machine.capabilities.background_memory_reason = ExplainRefusal(accepted);
  machine.capabilities.engine_memory = accepted.ok() && machine.memory.has_value();
  if (!accepted.ok()) machine.capabilities.engine_memory_reason = machine.capabilities.background_memory_reason;
  return absl::OkStatus();
}

absl::Status LoadIncoming(QmpClient& qmp, const IncomingState& incoming) {
  int fd = incoming.device_state.get();
  if (::lseek(fd, 0, SEEK_SET) != 0) return ErrnoStatus(errno, "rewind the device state");
  QmpSubscription migration = qmp.Subscribe({"MIGRATION"});
  STILL_RETURN_IF_ERROR(qmp.RunWithFd("getfd", {{"fdname", kIncomingFd}}, fd, kCommandDeadline));
  STILL_RETURN_IF_ERROR(qmp.Run("migrate-incoming", {{"uri", absl::StrCat("fd:", kIncomingFd)}}, kCommandDeadline));
  for (;;) {
    STILL_ASSIGN_OR_RETURN(QmpEvent event, migration.Next(kIncomingDeadline));
    std::string status = TextAt(event.data, "status");
    if (status == "completed") return absl::OkStatus();
    if (status == "failed") return absl::DataLossError("QEMU could not load the saved device state");
  }
}

absl::Status FinishStart(QemuMachine& machine, const VmConfig& config, const QemuOptions& options,
                         MemoryHandover& handover) {
  STILL_RETURN_IF_ERROR(handover.CheckMapping());
  STILL_RETURN_IF_ERROR(SetMigrationCapabilities(*machine.qmp, {{"events", true}}));
  if (config.incoming.has_value()) STILL_RETURN_IF_ERROR(LoadIncoming(*machine.qmp, *config.incoming));
  STILL_RETURN_IF_ERROR(QueryCapabilities(machine, options, handover));
  bool held = false;
  for (const NicConfig& nic : config.nics) {
    if (nic.link_up) continue;
    STILL_RETURN_IF_ERROR(machine.qmp->Run("set_link", {{"name", nic.name}, {"up", false}}, kCommandDeadline));
    held = true;
  }
  if (held && !config.incoming.has_value()) return ResumeVcpus(*machine.qmp);
  return absl::OkStatus();
}

// A guest with a network must not reach the host's loopback through it: the library that sees to that, or "" without need.
absl::StatusOr<std::string> LoopbackGuard(const VmConfig& config, ProcessOptions& process) {
  if (!ReachesANetwork(config)) return std::string();
  absl::StatusOr<std::string> library = FindPreloadLibrary();
  if (!library.ok())
    return Annotate(library.status(), "a network needs it, to keep the guest from the host's loopback");
  Preload(*library, process.environment);
  return *library;
}

// The reader's thread, which calls it, ends with machine.qmp.
std::function<void(const QmpEvent&)> EventListener(QemuMachine& machine, std::function<void()> on_reset) {
  return
      [guest = machine.guest, run_state = &machine.run_state, on_reset = std::move(on_reset)](const QmpEvent& event) {
        run_state->Note(event);
        if (event.name == "SHUTDOWN" && Member(event.data, "guest") == true) guest->shut_down = true;
        if (event.name != "RESET") return;
        ++guest->resets;
        if (on_reset) on_reset();
      };
}

std::vector<int> InheritedFds(const VmConfig& config, const QemuConfinement& confinement) {
  std::vector<int> fds;
  if (config.incoming.has_value()) fds.push_back(confinement.ram(config));
  if (config.qga_fd >= 0) fds.push_back(config.qga_fd);
  if (config.vsock.has_value()) {
    if (config.vsock->vhost_fd >= 0) fds.push_back(config.vsock->vhost_fd);
    fds.insert(fds.end(), config.vsock->inherited_fds.begin(), config.vsock->inherited_fds.end());
  }
  return fds;
}

std::string QemuBinary(const QemuOptions& options) {
  if (!options.binary.empty()) return options.binary;
  const char* chosen = std::getenv("STILL_QEMU");
  return chosen != nullptr && *chosen != '\0' ? chosen : "qemu-system-x86_64";
}

std::shared_ptr<QemuMachine> MakeMachine(const QemuOptions& options, const VmConfig& config,
                                         const QemuConfinement& confinement, pid_t pid) {
  auto machine = std::make_shared<QemuMachine>();
  machine->disks = config.disks;
  machine->directory = config.directory;
  machine->directory_name = confinement.directory_name();
  machine->user = confinement.user();
  machine->sessions = config.sessions;
  machine->command_deadline = options.command_deadline;
  machine->pid = pid;
  machine->memory_bytes = config.memory_bytes;
  machine->leave_out_of_protection = options.leave_out_of_protection;
  if (config.incoming.has_value() && !config.incoming->share_ram) machine->image_point = config.incoming->memory_point;
  return machine;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> StartQemu(const VmConfig& config) { return StartQemuWith({}, config); }

absl::StatusOr<std::unique_ptr<Vm>> StartQemuWith(const QemuOptions& options, const VmConfig& config) {
  STILL_RETURN_IF_ERROR(CheckVmConfig(config));
  STILL_RETURN_IF_ERROR(CheckFiles(config));
  STILL_ASSIGN_OR_RETURN(SocketPair qmp, MakeSocketPair());
  STILL_ASSIGN_OR_RETURN(SocketPair console, MakeSocketPair());

  QemuProcess::Options launch{.console = std::move(console.first),
                              .console_log = JoinPath(config.directory, "console.log"),
                              .stderr_log = JoinPath(config.directory, "qemu.log")};
  STILL_ASSIGN_OR_RETURN(OwnedFd directory, OpenFile(config.directory, O_PATH | O_DIRECTORY));
  const std::string binary = QemuBinary(options);
  STILL_ASSIGN_OR_RETURN(QemuConfinement confinement, QemuConfinement::Create(binary, config, directory.get()));
  const int saved_ram = config.incoming.has_value() ? confinement.ram(config) : -1;
  MemoryHandover handover = options.memory_engine && options.background_memory
                                ? MemoryHandover::Prepare(config, saved_ram)
                                : MemoryHandover("switched off");
  std::vector<std::string> command = QemuCommand(binary, config,
                                                 {.qmp = qmp.second.get(),
                                                  .console = console.second.get(),
                                                  .directory = directory.get(),
                                                  .ram = handover.wanted() ? handover.ram() : saved_ram,
                                                  .ram_is_handed_over = handover.wanted(),
                                                  .names = confinement.names(),
                                                  .backing = confinement.backing()});
  launch.process.argv = command;
  launch.process.inherited_fds = InheritedFds(config, confinement);
  launch.process.inherited_fds.insert(launch.process.inherited_fds.end(),
                                      {qmp.second.get(), console.second.get(), directory.get()});
  if (config.vsock.has_value()) launch.process.environment = config.vsock->environment;
  confinement.AddTo(launch.process);
  handover.AddTo(launch.process);
  STILL_ASSIGN_OR_RETURN(std::string loopback_guard, LoopbackGuard(config, launch.process));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<QemuProcess> process, QemuProcess::Start(std::move(launch)));
  // From here on only QEMU holds its ends, so that its death is our end of file.
  confinement.HandedOver();
  handover.HandedOver();
  qmp.second.Reset();
  console.second.Reset();

  const std::shared_ptr<QemuMachine> machine = MakeMachine(options, config, confinement, process->pid());
  const auto on_event = EventListener(*machine, config.on_reset);
  auto connect = [&]() -> absl::StatusOr<VmDescription> {
    STILL_ASSIGN_OR_RETURN(
        machine->qmp,
        QmpClient::Connect(std::move(qmp.first), {.handshake_deadline = kHandshakeDeadline, .on_event = on_event}));
    if (!loopback_guard.empty()) STILL_RETURN_IF_ERROR(CheckPreloaded(machine->pid, loopback_guard));
    STILL_RETURN_IF_ERROR(FinishStart(*machine, config, options, handover));
    return Describe(*machine->qmp, config);
  };
  absl::StatusOr<VmDescription> description = connect();
  if (!description.ok()) {
    // When it ended, its last words are the better explanation.
    if (description.status().code() != absl::StatusCode::kUnavailable) return description.status();
    (void)process->Wait(kLastWordsDeadline);
    return StatusOfLastWords(process->stderr_tail(), description.status());
  }
  description->pid = process->pid();
  description->command = std::move(command);
  std::vector<std::string> nics;
  for (const NicConfig& nic : config.nics) nics.push_back(nic.name);
  return std::unique_ptr<Vm>(
      std::make_unique<QemuVm>(std::move(process), machine, *std::move(description), std::move(nics)));
}

}  // namespace still::session
