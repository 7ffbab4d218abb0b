#include "session/session.h"

#include <fcntl.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "session/console.h"
#include "session/hypervisor/host_cpu.h"
#include "session/session_config.h"

namespace still::session {
namespace {

constexpr absl::Duration kAgentCallTimeout = absl::Seconds(10);
// An installation reboots once or twice before its agent runs; a kernel that panics at once does not stop.
constexpr uint32_t kTooManyReboots = 5;
constexpr size_t kMaxPayloadBytes = 16 << 20;
constexpr size_t kMaxStderrBytes = 1 << 20;

SessionEnd MakeEnd(SessionEnd::Kind kind) {
  SessionEnd end;
  end.set_kind(kind);
  return end;
}

void AppendBounded(std::string& out, absl::string_view data, size_t limit, bool& truncated) {
  size_t room = limit - std::min(limit, out.size());
  truncated |= data.size() > room;
  absl::StrAppend(&out, data.substr(0, room));
}

// "disk vda of snapshot 2b79...".
std::string LazySource(const sessionpb::SessionConfig& config) {
  std::vector<absl::string_view> names;
  for (const sessionpb::DiskFile& disk : config.disks()) {
    if (!disk.backing_export().empty()) names.push_back(disk.name());
  }
  return absl::StrCat(names.size() == 1 ? "disk " : "disks ", absl::StrJoin(names, ", "), " of snapshot ",
                      config.origin_snapshot());
}

// Early in its boot a guest calls it "tsc-early".
manifestpb::Machine::ClockSource ClockSourceOf(const std::string& told) {
  if (told.empty()) return manifestpb::Machine::CLOCK_SOURCE_UNKNOWN;
  return absl::StartsWith(told, "tsc") ? manifestpb::Machine::CLOCK_SOURCE_TSC
                                       : manifestpb::Machine::CLOCK_SOURCE_OTHER;
}

}  // namespace

absl::StatusOr<Response> SessionClient::Request(const Action& action) const {
  if (link_ == nullptr) return absl::FailedPreconditionError("the session has no vsock, so no agent to ask");
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, link_->Client(kAgentCallTimeout));
  Response response;
  auto keep = [&response](const guestpb::ExecOutput& output) {
    ResponseHeader& header = response.header;
    if (output.has_stdout_data()) {
      AppendBounded(response.payload, output.stdout_data(), kMaxPayloadBytes, header.truncated);
    } else if (output.has_stderr_data()) {
      AppendBounded(header.stderr_text, output.stderr_data(), kMaxStderrBytes, header.truncated);
    }
    return true;
  };
  STILL_ASSIGN_OR_RETURN(response.header.exit, client->Exec(action.exec, keep, /*caller=*/nullptr));
  return response;
}

Session::Session(sessionpb::SessionConfig config, StartOptions options)
    : config_(std::move(config)),
      directory_(std::move(options.directory)),
      clock_(*options.clock),
      start_vm_(std::move(options.start_vm)),
      started_(clock_.Now()),
      started_monotonic_(clock_.Monotonic()) {}

absl::StatusOr<std::unique_ptr<Session>> Session::Start(const sessionpb::SessionConfig& config, StartOptions options) {
  STILL_RETURN_IF_ERROR(ValidateConfig(config, /*has_ram=*/options.ram.valid()));
  OwnedFd ram = std::move(options.ram);
  OwnedFd disk_secret = std::move(options.disk_secret);
  auto session = absl::WrapUnique(new Session(config, std::move(options)));
  STILL_RETURN_IF_ERROR(session->StartVsock());
  STILL_RETURN_IF_ERROR(session->StartDiskServer(std::move(disk_secret)));
  STILL_ASSIGN_OR_RETURN(VmConfig vm_config, session->MakeVmConfig(std::move(ram)));
  STILL_ASSIGN_OR_RETURN(OwnedFd qga_port, session->OpenQgaPort());
  vm_config.qga_fd = qga_port.get();
  session->cmdline_ = vm_config.cmdline;
  STILL_ASSIGN_OR_RETURN(session->vm_, session->start_vm_(vm_config));
  if (session->link_ != nullptr) session->link_->vsock().HypervisorStarted();
  session->FillMachine();
  // A hypervisor that has no lazy disks has no use for the server.
  if (session->vm_->lazy_disks() == nullptr) session->disk_server_.reset();
  session->keeper_ = std::make_unique<VmKeeper>(*session->vm_, std::move(session->disk_server_), LazySource(config));
  if (!config.has_restore()) session->keeper_->Watch();
  {
    absl::MutexLock lock(&session->end_->mutex);
    session->end_->vm = session->vm_.get();
    session->end_->link = session->link_.get();
  }
  session->exit_watcher_ = std::thread([s = session.get()] { s->WatchExit(); });
  if (config.time_limit_s() > 0)
    session->time_limit_watcher_ = std::thread([s = session.get()] { s->WatchTimeLimit(); });
  return session;
}

Session::~Session() {
  keeper_.reset();
  if (vm_ != nullptr) {
    EndWith(*end_, MakeEnd(SessionEnd::STOPPED));
    if (exit_watcher_.joinable()) exit_watcher_.join();
    if (time_limit_watcher_.joinable()) time_limit_watcher_.join();
    absl::MutexLock lock(&end_->mutex);
    end_->vm = nullptr;
    end_->link = nullptr;
  }
  if (link_ != nullptr) link_->Shutdown();
}

absl::Status Session::StartVsock() {
  if (config_.vsock_backend() == sessionpb::SessionConfig::OFF) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<VsockHost> vsock,
                         VsockHost::Create({.directory = directory_,
                                            .port = config_.machine().vsock_port(),
                                            .backend = BackendOf(config_.vsock_backend())}));
  std::string restore_id = config_.has_identity() ? config_.identity().restore_id() : config_.restore().restore_id();
  link_ = std::make_shared<GuestLink>(std::move(vsock),
                                      GuestHello{.session = config_.name(), .restore_id = std::move(restore_id)});
  return absl::OkStatus();
}

absl::Status Session::StartDiskServer(OwnedFd secret) {
  if (!config_.has_disk_server()) return absl::OkStatus();
  const auto& command = config_.disk_server().command();
  STILL_ASSIGN_OR_RETURN(disk_server_, DiskServer::Start({.command = {command.begin(), command.end()},
                                                          .socket_path = JoinPath(directory_, kDiskServerSocket),
                                                          .secret = std::move(secret)}));
  return absl::OkStatus();
}

absl::StatusOr<OwnedFd> Session::OpenQgaPort() {
  std::unique_ptr<QgaClient> qga;
  OwnedFd hypervisors_end;
  if (config_.qga_port()) {
    STILL_ASSIGN_OR_RETURN(SocketPair port, MakeSocketPair());
    qga = std::make_unique<QgaClient>(std::move(port.first));
    hypervisors_end = std::move(port.second);
  }
  guest_thaw_.emplace(link_, std::move(qga));
  return hypervisors_end;
}

absl::StatusOr<VmConfig> Session::MakeVmConfig(OwnedFd ram) {
  STILL_ASSIGN_OR_RETURN(VmConfig vm, BaseVmConfig(config_, directory_));
  if (link_ != nullptr) vm.vsock = link_->vsock().attachment();
  vm.on_reset = [book = reboot_book_, link = link_] {
    LogInfo("the guest was reset");
    {
      absl::MutexLock lock(&book->mutex);
      ++book->reboots.count;
      book->reboots.last = Clock::Real().Now();
    }
    if (link != nullptr) link->GuestRestarted();
  };
  if (config_.machine().direct_kernel()) vm.cmdline = AssembleCmdline(config_, vsock_port());
  if (start_vm_ == nullptr) {
    STILL_ASSIGN_OR_RETURN(start_vm_, HypervisorStarter(config_.machine().hypervisor()));
  }
  if (config_.has_restore()) {
    IncomingState incoming;
    incoming.ram = std::move(ram);
    STILL_ASSIGN_OR_RETURN(incoming.device_state, OpenFile(config_.restore().device_state(), O_RDONLY));
    incoming.share_ram = !config_.restore().private_mapping();
    incoming.memory_point = config_.restore().snapshot_id();
    incoming.generation_id = config_.machine().generation_id();
    vm.incoming = std::move(incoming);
  }
  return vm;
}

void Session::FillMachine() {
  const VmDescription& description = vm_->description();
  machine_ = config_.machine();
  machine_.set_hypervisor(description.hypervisor);
  machine_.set_hypervisor_version(description.version);
  machine_.set_machine_type(description.machine_type);
  machine_.set_cpu_model(description.cpu_model);
  machine_.set_accelerator(description.accelerator);
  machine_.set_firmware(description.firmware);
  machine_.set_ram_block(description.ram_block);
  machine_.set_device_state_format(description.device_state_format);
  machine_.set_vsock(link_ != nullptr);
  machine_.set_vsock_port(vsock_port().value_or(0));
  machine_.set_generation_id(description.generation_id);
  machine_.mutable_devices()->Assign(description.devices.begin(), description.devices.end());
  for (int i = 0; i < machine_.disks_size(); ++i) {
    const size_t index = static_cast<size_t>(i);
    machine_.mutable_disks(i)->set_pci_address(
        index < description.disk_addresses.size() ? description.disk_addresses[index] : "");
  }
  machine_.set_firmware_bytes(FirmwareFileSize(description.firmware));
  machine_.mutable_guest_cpu_features()->Assign(description.cpu.features.begin(), description.cpu.features.end());
  machine_.set_tsc_hz(description.cpu.tsc_hz);
  // For readers of before guest_cpu_features, which compare the kernel's words. All of them where QEMU does not say which.
  machine_.clear_cpu_features();
  if (description.accelerator != "kvm") return;
  std::set<std::string> given;
  for (const std::string& feature : description.cpu.features) given.insert(CpuWord(feature));
  for (const std::string& flag : HostCpuFlags()) {
    if (given.empty() || given.contains(CpuWord(flag))) machine_.add_cpu_features(flag);
  }
}

Session::Reboots Session::reboots() const {
  absl::MutexLock lock(&reboot_book_->mutex);
  return reboot_book_->reboots;
}

manifestpb::Machine Session::machine() const {
  manifestpb::Machine machine = machine_;
  machine.set_guest_agent(link_ == nullptr ? "" : link_->agent_version());
  machine.set_clock_source(ClockSourceOf(link_ == nullptr ? "" : link_->clock_source()));
  return machine;
}

std::optional<uint32_t> Session::vsock_port() const {
  if (link_ == nullptr) return std::nullopt;
  return link_->vsock().port();
}

void Session::EndWith(End& end, SessionEnd how) {
  absl::MutexLock lock(&end.mutex);
  if (!end.end.has_value()) {
    how.set_at_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
    end.end = std::move(how);
  }
  if (end.vm != nullptr) end.vm->Kill();
  if (end.link != nullptr) end.link->Shutdown();
}

SessionEnd Session::HowItExited(const ProcessExit& exit) const {
  if (vm_->guest_shut_down()) {
    absl::MutexLock lock(&end_->mutex);
    return MakeEnd(end_->stop_asked ? SessionEnd::STOPPED : SessionEnd::POWERED_OFF);
  }
  SessionEnd how = MakeEnd(exit.ok() ? SessionEnd::EXITED : SessionEnd::CRASHED);
  if (!exit.ok()) how.set_error(absl::StrCat("the hypervisor ended by itself: ", exit.ToString()));
  return how;
}

void Session::WatchExit() { EndWith(*end_, HowItExited(vm_->WaitForExit())); }

void Session::WatchTimeLimit() {
  if (WaitFor(absl::Seconds(config_.time_limit_s())).has_value()) return;
  EndWith(*end_, MakeEnd(SessionEnd::TIMED_OUT));
}

SessionEnd Session::Wait() {
  // Recorded is not over: the VM may still be on its way out.
  (void)vm_->WaitForExit();
  return *WaitFor(absl::InfiniteDuration());
}

std::optional<SessionEnd> Session::AwaitEnd(End& end, absl::Duration timeout) {
  absl::MutexLock lock(&end.mutex);
  auto ended = [&end]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(end.mutex) { return end.end.has_value(); };
  end.mutex.AwaitWithTimeout(absl::Condition(&ended), timeout);
  return end.end;
}

std::optional<SessionEnd> Session::WaitFor(absl::Duration timeout) { return AwaitEnd(*end_, timeout); }

void Session::StopWith(End& end, GuestLink* link, Clock& clock, absl::Duration grace) {
  {
    absl::MutexLock lock(&end.mutex);
    end.stop_asked = true;
  }
  if (grace > absl::ZeroDuration() && link != nullptr && !AwaitEnd(end, absl::ZeroDuration()).has_value()) {
    absl::Duration deadline = clock.Monotonic() + grace;
    absl::Status asked = link->PowerOff(grace, [&end](absl::Duration wait) { return AwaitEnd(end, wait).has_value(); });
    if (asked.ok()) {
      AwaitEnd(end, std::max(absl::ZeroDuration(), deadline - clock.Monotonic()));
    } else {
      LogWarning("the guest could not be asked to power off", {{"error", asked.ToString()}});
    }
  }
  SessionEnd how = MakeEnd(SessionEnd::STOPPED);
  how.set_by_force(true);
  EndWith(end, std::move(how));
}

void Session::Stop(absl::Duration grace) { StopWith(*end_, link_.get(), clock_, grace); }

void Session::Fail(const absl::Status& why) { EndWith(*end_, FailedStart(why)); }

std::function<void(absl::Duration grace)> Session::stop_handle() const {
  return
      [end = end_, link = link_, &clock = clock_](absl::Duration grace) { StopWith(*end, link.get(), clock, grace); };
}

absl::Status Session::WaitForAgent(absl::Duration timeout) {
  if (link_ == nullptr) return absl::FailedPreconditionError("the session has no vsock, so no agent");
  absl::Duration deadline = clock_.Monotonic() + timeout;
  const uint32_t reboots_before = reboots().count;
  for (;;) {
    // In slices, so that a VM that dies while we wait is noticed at once.
    absl::Duration left = deadline - clock_.Monotonic();
    absl::StatusOr<std::shared_ptr<GuestClient>> client =
        link_->Client(std::clamp(left, absl::ZeroDuration(), absl::Seconds(1)));
    if (client.ok()) return absl::OkStatus();
    if (std::optional<absl::Status> ended = EndedError()) return Annotate(*ended, "before its agent answered");
    if (reboots().count - reboots_before >= kTooManyReboots) {
      return absl::AbortedError(absl::StrCat("the guest was reset ", kTooManyReboots,
                                             " times before its agent answered; ",
                                             DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
    }
    if (left <= absl::ZeroDuration()) {
      const std::string refused = link_->refused();
      return absl::DeadlineExceededError(absl::StrCat("no guest agent answered within ", absl::FormatDuration(timeout),
                                                      "; ", refused, refused.empty() ? "" : "; ",
                                                      DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
    }
  }
}

std::optional<absl::Status> Session::EndedError() {
  std::optional<SessionEnd> end = WaitFor(absl::ZeroDuration());
  if (!end.has_value()) return std::nullopt;
  return absl::AbortedError(absl::StrCat("the session ended: ", DescribeEnd(*end), "; ",
                                         DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
}

void Session::SetIdentity(guestpb::AdoptIdentityResponse identity) {
  absl::MutexLock lock(&identity_mutex_);
  identity_ = std::move(identity);
}

std::optional<guestpb::AdoptIdentityResponse> Session::identity() const {
  absl::MutexLock lock(&identity_mutex_);
  return identity_;
}

void Session::Hydrate(uint64_t bytes_per_second) { keeper_->Hydrate(bytes_per_second); }

}  // namespace still::session
