#include "session/session.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "session/console.h"
#include "session/guest/adopt_identity.h"
#include "session/hypervisor/host_cpu.h"
#include "session/session_config.h"

namespace still::session {
namespace {

constexpr absl::Duration kAgentCallTimeout = absl::Seconds(10);
constexpr absl::Duration kThawTimeout = absl::Seconds(30);
// Where the QEMU guest agent can be asked next: a frozen guest waits, and to be thawed by the other one does no harm.
constexpr absl::Duration kAgentBeforeQga = absl::Seconds(5);
// New SSH host keys of three kinds take a minute and a half on an emulated processor, and the guest's hooks come after.
constexpr absl::Duration kAdoptTimeout = absl::Seconds(300);
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
  STILL_ASSIGN_OR_RETURN(response.header.exit, client->Exec(action.exec, keep));
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
  session->FillMachine();
  if (session->disk_server_ != nullptr && session->vm_->lazy_disks() != nullptr) {
    session->disk_keeper_ =
        std::make_unique<DiskKeeper>(*session->vm_, std::move(session->disk_server_), LazySource(config));
  }
  {
    absl::MutexLock lock(&session->end_->mutex);
    session->end_->vm = session->vm_.get();
  }
  session->exit_watcher_ = std::thread([s = session.get()] { s->WatchExit(); });
  if (config.time_limit_s() > 0)
    session->time_limit_watcher_ = std::thread([s = session.get()] { s->WatchTimeLimit(); });
  return session;
}

Session::~Session() {
  disk_keeper_.reset();
  if (vm_ != nullptr) {
    EndWith(*end_, MakeEnd(SessionEnd::STOPPED));
    if (exit_watcher_.joinable()) exit_watcher_.join();
    if (time_limit_watcher_.joinable()) time_limit_watcher_.join();
    absl::MutexLock lock(&end_->mutex);
    end_->vm = nullptr;
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
  if (!config_.qga_port()) return OwnedFd();
  STILL_ASSIGN_OR_RETURN(SocketPair port, MakeSocketPair());
  qga_ = std::make_unique<QgaClient>(std::move(port.first));
  return std::move(port.second);
}

absl::StatusOr<VmConfig> Session::MakeVmConfig(OwnedFd ram) {
  STILL_ASSIGN_OR_RETURN(VmConfig vm, BaseVmConfig(config_, directory_));
  if (link_ != nullptr) vm.vsock = link_->vsock().attachment();
  if (config_.machine().direct_kernel()) vm.cmdline = AssembleCmdline(config_, vsock_port());
  if (start_vm_ == nullptr) {
    STILL_ASSIGN_OR_RETURN(start_vm_, HypervisorStarter(config_.machine().hypervisor()));
  }
  if (config_.has_restore()) {
    IncomingState incoming;
    incoming.ram = std::move(ram);
    STILL_ASSIGN_OR_RETURN(incoming.device_state, OpenFile(config_.restore().device_state(), O_RDONLY));
    incoming.share_ram = !config_.restore().private_mapping();
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
  machine_.set_firmware_bytes(FirmwareFileSize(description.firmware));
  machine_.clear_cpu_features();
  if (description.accelerator == "kvm") {
    for (std::string& feature : HostCpuFeatures()) machine_.add_cpu_features(std::move(feature));
  }
}

manifestpb::Machine Session::machine() const {
  manifestpb::Machine machine = machine_;
  machine.set_guest_agent(link_ == nullptr ? "" : link_->agent_version());
  return machine;
}

std::optional<uint32_t> Session::vsock_port() const {
  if (link_ == nullptr) return std::nullopt;
  return link_->vsock().port();
}

void Session::EndWith(End& end, SessionEnd how) {
  absl::MutexLock lock(&end.mutex);
  if (!end.end.has_value()) end.end = std::move(how);
  if (end.vm != nullptr) end.vm->Kill();
}

void Session::WatchExit() {
  ProcessExit exit = vm_->WaitForExit();
  SessionEnd how;
  if (vm_->guest_shut_down() || exit.ok()) {
    how.set_kind(SessionEnd::EXITED);
    how.set_exit_code(exit.exit_code);
  } else {
    how.set_kind(SessionEnd::ERROR);
    how.set_error(absl::StrCat("the hypervisor ended by itself: ", exit.ToString()));
  }
  EndWith(*end_, std::move(how));
}

void Session::WatchTimeLimit() {
  if (WaitFor(absl::Seconds(config_.time_limit_s())).has_value()) return;
  EndWith(*end_, MakeEnd(SessionEnd::TIMED_OUT));
}

SessionEnd Session::Wait() {
  // Recorded is not over: the VM may still be on its way out.
  (void)vm_->WaitForExit();
  return *WaitFor(absl::InfiniteDuration());
}

std::optional<SessionEnd> Session::WaitFor(absl::Duration timeout) {
  absl::MutexLock lock(&end_->mutex);
  auto ended = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(end_->mutex) { return end_->end.has_value(); };
  end_->mutex.AwaitWithTimeout(absl::Condition(&ended), timeout);
  return end_->end;
}

void Session::Stop(absl::Duration grace) {
  if (grace > absl::ZeroDuration() && link_ != nullptr && !WaitFor(absl::ZeroDuration()).has_value()) {
    absl::Duration deadline = clock_.Monotonic() + grace;
    absl::StatusOr<std::shared_ptr<GuestClient>> client = link_->Client(std::min(grace, kAgentCallTimeout));
    absl::Status asked = client.ok() ? (*client)->Shutdown(kAgentCallTimeout) : client.status();
    if (asked.ok()) {
      WaitFor(std::max(absl::ZeroDuration(), deadline - clock_.Monotonic()));
    } else {
      LogWarning("the guest could not be asked to power off", {{"error", asked.ToString()}});
    }
  }
  EndWith(*end_, MakeEnd(SessionEnd::STOPPED));
}

std::function<void()> Session::stop_handle() const {
  return [end = end_] { EndWith(*end, MakeEnd(SessionEnd::STOPPED)); };
}

absl::Status Session::WaitForAgent(absl::Duration timeout) {
  if (link_ == nullptr) return absl::FailedPreconditionError("the session has no vsock, so no agent");
  absl::Duration deadline = clock_.Monotonic() + timeout;
  for (;;) {
    // In slices, so that a VM that dies while we wait is noticed at once.
    absl::Duration left = deadline - clock_.Monotonic();
    absl::StatusOr<std::shared_ptr<GuestClient>> client =
        link_->Client(std::clamp(left, absl::ZeroDuration(), absl::Seconds(1)));
    if (client.ok()) return absl::OkStatus();
    if (std::optional<SessionEnd> end = WaitFor(absl::ZeroDuration())) {
      return absl::AbortedError(absl::StrCat("the session ended before its agent answered: ", DescribeEnd(*end), "; ",
                                             DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
    }
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat("no guest agent answered within ", absl::FormatDuration(timeout),
                                                      "; ", DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
    }
  }
}

absl::StatusOr<sessionpb::LaunchReport> Session::Continue(absl::Duration agent_timeout) {
  sessionpb::LaunchReport report;
  absl::Status status = RunRestored(agent_timeout, report);
  if (status.ok()) return report;
  Stop();
  return Annotate(status, "go on as a restored session");
}

absl::Status Session::RunRestored(absl::Duration agent_timeout, sessionpb::LaunchReport& report) {
  auto passed_us = [this] {
    return static_cast<uint64_t>(absl::ToInt64Microseconds(clock_.Monotonic() - started_monotonic_));
  };
  STILL_RETURN_IF_ERROR(executor_.Run([this] { return vm_->Resume(); }));
  report.set_running_us(passed_us());
  if (!config_.has_identity() && !config_.restore().thaw()) return absl::OkStatus();
  if (!config_.has_identity()) return ThawAsSaved(agent_timeout, report);
  if (absl::Status agent = WaitForAgent(agent_timeout); !agent.ok()) {
    if (qga_ == nullptr || absl::IsAborted(agent)) return agent;
    return Annotate(agent, "with --without-agent the QEMU guest agent thaws it, and it stays what its source was");
  }
  report.set_agent_us(passed_us());
  STILL_RETURN_IF_ERROR(BecomeItself(report));
  report.set_adopted_us(passed_us());
  return absl::OkStatus();
}

absl::Status Session::ThawAsSaved(absl::Duration agent_timeout, sessionpb::LaunchReport& report) {
  absl::Status agent = WaitForAgent(qga_ == nullptr ? agent_timeout : std::min(agent_timeout, kAgentBeforeQga));
  if (agent.ok()) agent = ThawThroughAgent(kThawTimeout).status();
  if (agent.ok() || qga_ == nullptr || absl::IsAborted(agent)) return agent;
  STILL_ASSIGN_OR_RETURN(guestpb::ThawResponse thawed, ThawThroughQga(agent, kThawTimeout));
  report.add_warnings(
      absl::StrCat("still-agent did not answer; the QEMU guest agent thawed ", thawed.thawed(), " file systems"));
  return absl::OkStatus();
}

absl::StatusOr<guestpb::ThawResponse> Session::Thaw(absl::Duration timeout) {
  absl::StatusOr<guestpb::ThawResponse> thawed = ThawThroughAgent(timeout);
  if (thawed.ok() || qga_ == nullptr) return thawed;
  return ThawThroughQga(thawed.status(), timeout);
}

absl::StatusOr<guestpb::ThawResponse> Session::ThawThroughAgent(absl::Duration timeout) {
  if (link_ == nullptr) return absl::FailedPreconditionError("the session has no vsock, so no agent to ask");
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client,
                         link_->Client(qga_ == nullptr ? kAgentCallTimeout : kAgentBeforeQga));
  return client->Thaw("", timeout);
}

absl::StatusOr<guestpb::ThawResponse> Session::ThawThroughQga(const absl::Status& agent, absl::Duration timeout) {
  absl::StatusOr<uint32_t> thawed = qga_->Thaw(timeout);
  if (!thawed.ok()) return Annotate(thawed.status(), agent.message());
  guestpb::ThawResponse response;
  response.set_thawed(*thawed);
  response.set_cause(*thawed > 0 ? guestpb::REQUESTED : guestpb::NOT_FROZEN);
  return response;
}

absl::Status Session::BecomeItself(sessionpb::LaunchReport& report) {
  STILL_ASSIGN_OR_RETURN(guestpb::AdoptIdentityResponse adopted,
                         AdoptIdentity(*link_, config_.identity(), kAdoptTimeout));
  for (std::string& step : FailedSteps(adopted)) report.add_warnings(std::move(step));
  if (MayUseNetwork(adopted)) {
    for (const manifestpb::Nic& nic : config_.machine().nics()) {
      STILL_RETURN_IF_ERROR(executor_.Run([&] { return vm_->SetLink(nic.name(), true); }));
    }
  } else {
    report.add_warnings("the network stays down: on it this machine would have its source's addresses");
  }
  absl::MutexLock lock(&identity_mutex_);
  identity_ = std::move(adopted);
  return absl::OkStatus();
}

void Session::DescribeLazyDisks(sessionpb::DescribeResponse& out) {
  if (disk_keeper_ == nullptr) return;
  out.set_disk_trouble(disk_keeper_->trouble());
  absl::StatusOr<std::vector<LazyDiskState>> states = vm_->lazy_disks()->Query();
  if (!states.ok()) {
    // Nobody may take a VM that does not answer for one that needs the repository no more.
    for (const sessionpb::DiskFile& disk : config_.disks()) {
      if (!disk.backing_export().empty()) out.add_lazy_disks()->set_name(disk.name());
    }
    return;
  }
  for (const LazyDiskState& state : *states) {
    if (state.complete) continue;
    sessionpb::LazyDisk& disk = *out.add_lazy_disks();
    disk.set_name(state.name);
    disk.set_size(state.size);
    disk.set_hydrated(state.hydrated);
    disk.set_hydrating(state.hydrating);
  }
}

void Session::Hydrate(uint64_t bytes_per_second) {
  if (disk_keeper_ != nullptr) disk_keeper_->Hydrate(bytes_per_second);
}

sessionpb::DescribeResponse Session::Describe() {
  sessionpb::DescribeResponse out;
  out.set_name(config_.name());
  out.set_id(config_.id());
  *out.mutable_machine() = machine();
  const VmDescription& description = vm_->description();
  out.set_hypervisor(absl::StrCat(description.hypervisor, " ", description.version));
  out.set_accelerator(description.accelerator);
  out.set_pid(description.pid);
  out.mutable_hypervisor_command()->Assign(description.command.begin(), description.command.end());
  out.set_cmdline(cmdline_);
  out.set_console_log(JoinPath(directory_, "console.log"));
  out.set_started_unix_ns(absl::ToUnixNanos(started_));
  out.set_restored_from(config_.origin_snapshot());
  {
    absl::MutexLock lock(&identity_mutex_);
    if (identity_.has_value()) *out.mutable_identity() = *identity_;
  }
  const Capabilities& capabilities = vm_->capabilities();
  out.mutable_capabilities()->set_memory(capabilities.memory);
  out.mutable_capabilities()->set_background_memory(capabilities.background_memory);
  out.mutable_capabilities()->set_background_memory_reason(capabilities.background_memory_reason);
  out.mutable_capabilities()->set_disk_pin(capabilities.disk_pin);
  out.mutable_capabilities()->set_incremental_disk(capabilities.incremental_disk);
  out.set_vsock_backend("off");
  if (link_ != nullptr) {
    out.set_vsock_port(link_->vsock().port());
    out.set_guest_cid(link_->vsock().guest_cid());
    out.set_vsock_backend(std::string(link_->vsock().backend()));
  }
  if (std::optional<SessionEnd> end = WaitFor(absl::ZeroDuration())) {
    out.set_state(sessionpb::DescribeResponse::ENDED);
    *out.mutable_end() = *end;
    return out;
  }
  DescribeLazyDisks(out);
  absl::StatusOr<bool> paused = vm_->IsPaused();
  out.set_state(paused.ok() && *paused ? sessionpb::DescribeResponse::PAUSED : sessionpb::DescribeResponse::RUNNING);
  if (link_ == nullptr || !link_->ever_connected()) return out;
  absl::StatusOr<std::shared_ptr<GuestClient>> client = link_->Client(absl::Seconds(1));
  if (!client.ok()) return out;
  out.mutable_agent()->set_connected(true);
  out.mutable_agent()->set_version((*client)->init().agent_version());
  out.mutable_agent()->set_hostname((*client)->init().hostname());
  if (auto quiesce = (*client)->QuiesceStatus(absl::Seconds(2)); quiesce.ok()) {
    out.mutable_agent()->set_quiesce_state(quiesce->state());
  }
  return out;
}

}  // namespace still::session
