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
#include "session/hypervisor/host_cpu.h"
#include "session/session_config.h"

namespace still::session {
namespace {

constexpr absl::Duration kAgentCallTimeout = absl::Seconds(10);
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
      const std::string refused = link_->refused();
      return absl::DeadlineExceededError(absl::StrCat("no guest agent answered within ", absl::FormatDuration(timeout),
                                                      "; ", refused, refused.empty() ? "" : "; ",
                                                      DescribeConsoleEnd(JoinPath(directory_, "console.log"))));
    }
  }
}

void Session::SetIdentity(guestpb::AdoptIdentityResponse identity) {
  absl::MutexLock lock(&identity_mutex_);
  identity_ = std::move(identity);
}

std::optional<guestpb::AdoptIdentityResponse> Session::identity() const {
  absl::MutexLock lock(&identity_mutex_);
  return identity_;
}

void Session::Hydrate(uint64_t bytes_per_second) {
  if (disk_keeper_ != nullptr) disk_keeper_->Hydrate(bytes_per_second);
}

}  // namespace still::session
