#include "session/hypervisor/process/process_vm.h"

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/waker.h"
#include "session/hypervisor/image_flush.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/process/process_disk.h"
#include "session/hypervisor/process/stop_lease.h"
#include "session/hypervisor/process/target_process.h"

namespace still::session {
namespace {

struct Adopted {
  Adopted(TargetProcess process, const VmConfig& config)
      : target(std::move(process)), disks(config.disks), directory(config.directory) {}
  const TargetProcess target;
  const std::vector<DiskConfig> disks;
  const std::string directory;
  std::atomic<bool> capture_active = false;
};

class ProcessCapture final : public VmCapture {
 public:
  ProcessCapture(std::shared_ptr<Adopted> vm, const CaptureOptions& options)
      : vm_(std::move(vm)), options_(options), budget_(options.max_pause), disks_(vm_->disks, vm_->directory) {}
  ~ProcessCapture() override {
    if (absl::Status released = Release(false); !released.ok()) {
      LogError("a capture could not be released", {{"error", released.ToString()}});
    }
  }

  absl::Status Prepare() {
    STILL_ASSIGN_OR_RETURN(bool stopped, vm_->target.IsStopped());
    if (stopped) return absl::FailedPreconditionError("somebody else has stopped the process; continue it first");
    STILL_ASSIGN_OR_RETURN(StopLease lease, StopLease::Make(vm_->target.pidfd()));
    lease_.emplace(std::move(lease));
    return disks_.Prepare();
  }

  absl::Status FlushDisks() override {
    STILL_RETURN_IF_ERROR(CheckCancelled());
    return budget_.Explain(FlushImages(vm_->disks, options_.max_pause));
  }

  absl::StatusOr<PausedVm> Pause() override {
    STILL_RETURN_IF_ERROR(CheckCancelled());
    STILL_RETURN_IF_ERROR(lease_->Begin(options_.max_pause));
    begun_ = Clock::Real().Monotonic();
    budget_.Begin();
    // On an error, too, the guard continues: a stop may still be pending.
    PausedVm paused([vm = vm_] { return vm->target.Continue(); });
    commands_.push_back("SIGSTOP");
    STILL_RETURN_IF_ERROR(budget_.Explain(vm_->target.Stop(options_.max_pause)));
    return paused;
  }

  absl::Status PinDisks(const PausedVm&) override {
    STILL_RETURN_IF_ERROR(CheckCancelled());
    for (const DiskConfig& disk : vm_->disks) commands_.push_back(absl::StrCat("pin ", disk.name));
    return budget_.Explain(disks_.Pin(begun_ + options_.max_pause));
  }

  absl::StatusOr<PauseReport> SaveStateAndResume(PausedVm paused) override {
    // Before the resume: what ran out meanwhile would be hidden by our own SIGCONT.
    absl::Status cancelled = CheckCancelled();
    absl::Status resumed = paused.Resume();
    commands_.push_back("SIGCONT");
    absl::Duration length = Clock::Real().Monotonic() - begun_;
    STILL_RETURN_IF_ERROR(FirstError(cancelled, resumed));
    STILL_RETURN_IF_ERROR(lease_->End());
    return PauseReport{.paused = length, .commands = commands_, .memory_method = "none"};
  }

  absl::StatusOr<std::vector<PinnedDiskExport>> ExportDisks() override {
    STILL_RETURN_IF_ERROR(CheckCancelled());
    return disks_.Export();
  }
  absl::Status WaitForMemory(absl::Duration) override {
    return absl::FailedPreconditionError("no memory was asked for");
  }
  uint64_t memory_bytes_written() const override { return 0; }

  absl::Status Release(bool) override {
    if (std::exchange(released_, true)) return absl::OkStatus();
    lease_.reset();
    absl::Status result = disks_.Release();
    vm_->capture_active = false;
    return result;
  }
  void Cancel() override {
    cancelled_ = true;
    disks_.Cancel();
  }

 private:
  absl::Status CheckCancelled() const {
    return cancelled_ ? absl::CancelledError("the capture was cancelled") : absl::OkStatus();
  }

  const std::shared_ptr<Adopted> vm_;  // Shared with the Vm, whose destruction this outlives safely.
  const CaptureOptions options_;
  PauseBudget budget_;
  ProcessDisks disks_;
  std::optional<StopLease> lease_;
  absl::Duration begun_;
  std::vector<std::string> commands_;
  bool released_ = false;
  std::atomic<bool> cancelled_ = false;
};

class ProcessVm final : public Vm {
 public:
  ProcessVm(std::shared_ptr<Adopted> vm, Waker let_go) : vm_(std::move(vm)), let_go_(std::move(let_go)) {
    description_.hypervisor = "process";
    description_.pid = vm_->target.pid();
    description_.command = vm_->target.command();
    std::vector<std::string> reasons;
    for (const DiskConfig& disk : vm_->disks) {
      if (disk.read_only) continue;
      if (std::string why = WhyNoReflink(disk.path); !why.empty()) reasons.push_back(std::move(why));
    }
    capabilities_.disk_pin = reasons.empty();
    capabilities_.background_memory_reason = "a process that is only stopped keeps its memory to itself";
    if (!reasons.empty()) {
      LogWarning("disks are copied while the process is stopped", {{"reason", absl::StrJoin(reasons, "; ")}});
    }
  }

  const Capabilities& capabilities() const override { return capabilities_; }
  const VmDescription& description() const override { return description_; }
  absl::StatusOr<bool> IsPaused() override { return vm_->target.IsStopped(); }
  absl::Status Resume() override { return vm_->target.Continue(); }
  absl::Status SetLink(const std::string&, bool) override {
    return absl::UnimplementedError("the network of an adopted process is its own");
  }

  absl::StatusOr<std::unique_ptr<VmCapture>> PrepareCapture(const CaptureOptions& options,
                                                            OwnedFd memory_sink) override {
    if (options.memory != memory_sink.valid()) {
      return absl::InvalidArgumentError("a memory sink must be given exactly when memory is asked for");
    }
    if (options.memory) return absl::FailedPreconditionError("the memory of an adopted process cannot be saved");
    if (vm_->capture_active.exchange(true)) {
      return absl::FailedPreconditionError("another capture of this process is running; wait for it or end it");
    }
    auto capture = std::make_unique<ProcessCapture>(vm_, options);
    STILL_RETURN_IF_ERROR(capture->Prepare());
    return std::unique_ptr<VmCapture>(std::move(capture));
  }

  void Kill() override { let_go_.Wake(); }
  // Its exit code is its parent's to know.
  ProcessExit WaitForExit() override {
    pollfd fds[2] = {{vm_->target.pidfd(), POLLIN, 0}, {let_go_.fd(), POLLIN, 0}};
    while (::poll(fds, 2, -1) < 0 && errno == EINTR) {
    }
    return {};
  }
  bool guest_shut_down() const override { return false; }  // Nobody says why a process has ended.

 private:
  const std::shared_ptr<Adopted> vm_;  // Shared with captures.
  const Waker let_go_;                 // Kill() was called. Never cleared, so that every waiter sees it.
  VmDescription description_;
  Capabilities capabilities_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Vm>> AdoptProcess(const VmConfig& config) {
  if (config.adopt_pid <= 0) return absl::InvalidArgumentError("no process to adopt: give its pid");
  if (config.disks.empty()) return absl::InvalidArgumentError("give the disk files of the process");
  STILL_ASSIGN_OR_RETURN(TargetProcess target, TargetProcess::Open(config.adopt_pid));
  for (const DiskConfig& disk : config.disks) {
    STILL_ASSIGN_OR_RETURN(bool open, target.HasOpen(disk.path));
    if (open) continue;
    return absl::FailedPreconditionError(absl::StrCat("process ", config.adopt_pid, " does not have ", disk.path,
                                                      " open: stopping it would not stop the writes to this disk"));
  }
  STILL_ASSIGN_OR_RETURN(Waker let_go, Waker::Create());
  return std::unique_ptr<Vm>(
      std::make_unique<ProcessVm>(std::make_shared<Adopted>(std::move(target), config), std::move(let_go)));
}

}  // namespace still::session
