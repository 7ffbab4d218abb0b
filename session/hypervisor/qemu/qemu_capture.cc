#include "session/hypervisor/qemu/qemu_capture.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/random.h"
#include "session/hypervisor/image_flush.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/qemu/capture_sweep.h"
#include "session/hypervisor/qemu/earlier_stream.h"
#include "session/hypervisor/qemu/engine_save.h"
#include "session/hypervisor/qemu/qemu_disk.h"
#include "session/hypervisor/qemu/qemu_migration.h"
#include "session/hypervisor/qemu/stream_save.h"

namespace still::session {
namespace {

using nlohmann::json;

// While the VM runs and nobody waits.
constexpr absl::Duration kLongFlush = absl::Seconds(60);

class QemuCapture : public VmCapture {
 public:
  QemuCapture(std::shared_ptr<QemuMachine> machine, const CaptureOptions& options)
      : machine_(std::move(machine)),
        options_(options),
        background_(options.memory && machine_->capabilities.background_memory),
        budget_(options.max_pause),
        disks_(*machine_),
        migration_(*machine_, budget_, commands_) {}
  ~QemuCapture() override {
    if (absl::Status released = Release(false); !released.ok()) {
      LogError("a capture could not be released", {{"error", released.ToString()}});
    }
  }

  absl::Status Prepare(OwnedFd memory_sink);
  absl::Status FlushDisks() override;
  absl::StatusOr<PausedVm> Pause() override;
  absl::Status PinDisks(const PausedVm& paused) override;
  absl::StatusOr<PauseReport> SaveStateAndResume(PausedVm paused) override;
  absl::StatusOr<std::vector<PinnedDiskExport>> ExportDisks() override;
  absl::Status CheckPins() override { return disks_.Check(); }
  absl::Status WaitForMemory(absl::Duration stall_limit) override;
  uint64_t memory_bytes_written() const override { return memory_ == nullptr ? 0 : memory_->bytes(); }
  absl::Status Release(bool committed) override;
  void Cancel() override;

 private:
  QmpClient& qmp() { return *machine_->qmp; }
  absl::Status CheckCancelled() const {
    return cancelled_ ? absl::CancelledError("the capture was cancelled") : absl::OkStatus();
  }
  absl::Status PrepareMemory(OwnedFd memory_sink);
  absl::StatusOr<PauseReport> SaveInBackground();
  absl::StatusOr<PauseReport> SaveStopped(PausedVm& paused);
  absl::Status ActivateDisks();
  PauseReport Report();

  const std::shared_ptr<QemuMachine> machine_;  // Shared with the Vm, whose destruction this outlives safely.
  const CaptureOptions options_;
  const bool background_;
  PauseBudget budget_;
  std::vector<std::string> commands_;  // Inside the pause.
  DiskPins disks_;
  QemuMigration migration_;
  std::unique_ptr<MemorySave> memory_;  // Null without memory; set before anybody else knows the capture.
  std::string memory_reason_;           // Why it is not a better way.
  bool may_be_paused_ = false;
  bool released_ = false;
  bool disks_wanted_ = false;
  std::atomic<bool> cancelled_ = false;
};

absl::Status QemuCapture::Prepare(OwnedFd memory_sink) {
  if (options_.memory != memory_sink.valid()) {
    return absl::InvalidArgumentError("a memory sink must be given exactly when memory is asked for");
  }
  // First: one that begins late stops the VM, and resumes it.
  STILL_RETURN_IF_ERROR(AwaitEarlierStream(*machine_));
  STILL_ASSIGN_OR_RETURN(bool paused, QueryPaused(qmp()));
  if (paused) return absl::FailedPreconditionError("the VM is paused; resume it first");
  STILL_RETURN_IF_ERROR(SweepCaptures(*machine_));
  machine_->unswept = false;
  // Now is the time to write much; FlushDisks then finds little.
  if (absl::Status flushed = FlushImages(machine_->disks, kLongFlush); !flushed.ok()) {
    LogWarning("the disk images could not be written back", {{"error", flushed.ToString()}});
  }
  STILL_RETURN_IF_ERROR(disks_.Prepare({.capture_id = absl::StrFormat("%016x", RandomU64()),
                                        .repository_id = options_.repository_id,
                                        .base_bitmaps = options_.base_bitmaps,
                                        .space_limit = options_.pin_space_limit,
                                        .stall_limit = options_.disk_stall_limit,
                                        .filters_before_pause = background_ || !options_.memory}));
  // Last: once memory is armed, the guest's first write to each page costs it a wait.
  return options_.memory ? PrepareMemory(std::move(memory_sink)) : absl::OkStatus();
}

absl::Status QemuCapture::PrepareMemory(OwnedFd memory_sink) {
  if (background_ && machine_->capabilities.engine_memory) {
    auto engine = EngineSave::Prepare(*machine_, migration_, options_, memory_sink);
    if (engine.ok()) {
      memory_ = *std::move(engine);
      return absl::OkStatus();
    }
    LogWarning("the memory engine cannot be used for this capture", {{"error", engine.status().ToString()}});
    memory_reason_ = std::string(engine.status().message());
    machine_->tracked.reset();  // QEMU cannot protect what the engine has registered.
  } else {
    memory_reason_ =
        background_ ? machine_->capabilities.engine_memory_reason : machine_->capabilities.background_memory_reason;
  }
  STILL_ASSIGN_OR_RETURN(memory_,
                         StreamSave::Prepare(*machine_, migration_, options_, background_, std::move(memory_sink)));
  return absl::OkStatus();
}

// `stop` writes the images back inside the pause. It has little to write then.
absl::Status QemuCapture::FlushDisks() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  STILL_RETURN_IF_ERROR(budget_.Explain(FlushImages(machine_->disks, options_.max_pause)));
  return memory_ == nullptr ? absl::OkStatus() : memory_->LastRound();
}

absl::StatusOr<PausedVm> QemuCapture::Pause() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  may_be_paused_ = true;
  machine_->run_state.BeginPause(options_.stop_for_memory ? absl::InfiniteDuration()
                                                          : options_.max_pause + machine_->command_deadline);
  PausedVm paused([machine = machine_] {
    // First: if it cannot be resumed now, others may try.
    machine->run_state.EndPause();
    return ResumeVcpus(*machine->qmp, machine->command_deadline);
  });
  budget_.Begin();
  commands_.push_back("stop");
  // On an error the guard resumes, also when only the answer was late.
  absl::Status stopped = qmp().Run("stop", json::object(), options_.max_pause);
  STILL_RETURN_IF_ERROR(budget_.Explain(Annotate(stopped, "pause the VM")));
  if (std::optional<Standstill> held = machine_->run_state.HeldBy(machine_->disks)) {
    return absl::UnavailableError(
        absl::StrCat("disk ", held->disk, " has stopped the VM right before: ", held->reason));
  }
  migration_.NotePause();
  return paused;
}

// Nothing but one qom-set a disk: the filter and everything behind it exist already, and bitmaps have nothing to do with
// the pause (qemu_disk.h).
absl::Status QemuCapture::PinDisks(const PausedVm&) {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  disks_wanted_ = true;
  // Block nodes with a filter about cannot be deactivated, which is what a plain migration does at its end: the disks
  // are then pinned after it, still inside the pause.
  if (options_.memory && !background_) return absl::OkStatus();
  return budget_.Explain(disks_.Pin(budget_, commands_));
}

absl::StatusOr<PauseReport> QemuCapture::SaveStateAndResume(PausedVm paused) {
  const bool in_background = background_ && options_.memory;
  absl::StatusOr<PauseReport> report = in_background ? SaveInBackground() : SaveStopped(paused);
  if (report.ok()) {
    paused.Forget();
    machine_->run_state.EndPause();
    may_be_paused_ = false;
    return report;
  }
  absl::Status resumed = paused.Resume();
  if (resumed.ok()) may_be_paused_ = false;
  return FirstError(report.status(), resumed);
}

absl::StatusOr<PauseReport> QemuCapture::SaveInBackground() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  STILL_ASSIGN_OR_RETURN(const absl::Duration left, budget_.Left());
  STILL_RETURN_IF_ERROR(budget_.Explain(memory_->Protect(left)));
  STILL_RETURN_IF_ERROR(migration_.Start());
  STILL_RETURN_IF_ERROR(migration_.AwaitWriteProtection());
  STILL_RETURN_IF_ERROR(memory_->Resumed(migration_.resumed_at()));
  return Report();
}

absl::StatusOr<PauseReport> QemuCapture::SaveStopped(PausedVm& paused) {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  if (options_.memory) {
    STILL_RETURN_IF_ERROR(migration_.Start());
    STILL_RETURN_IF_ERROR(memory_->Await(options_.memory_stall_limit, options_.stop_for_memory ? nullptr : &budget_));
    if (options_.stop_for_memory) budget_.Forgive();
    if (disks_wanted_) {
      STILL_RETURN_IF_ERROR(budget_.Explain(ActivateDisks()));
      STILL_RETURN_IF_ERROR(budget_.Explain(disks_.Pin(budget_, commands_)));
    }
  }
  commands_.push_back("cont");
  STILL_RETURN_IF_ERROR(Annotate(paused.Resume(), "resume the VM"));
  migration_.Drain();
  return Report();
}

// A plain migration deactivates the block nodes at its end. QEMU 10.0 and newer lets nothing be put over them then; until
// then there was neither that rule nor the command.
absl::Status QemuCapture::ActivateDisks() {
  STILL_ASSIGN_OR_RETURN(const absl::Duration left, budget_.Left());
  absl::Status activated = qmp().Run("blockdev-set-active", {{"active", true}}, left);
  if (absl::IsUnimplemented(activated)) return absl::OkStatus();
  commands_.push_back("blockdev-set-active");
  return activated;
}

PauseReport QemuCapture::Report() {
  PauseReport report{.paused = migration_.resumed_at() - migration_.stopped_at(),
                     .commands = commands_,
                     .memory_method = "none",
                     .memory_method_reason = memory_reason_};
  if (memory_ != nullptr) memory_->AddTo(report);
  if (options_.track_memory && report.memory_point.empty()) {
    report.memory_full_reason = absl::StrCat("memory is only tracked by the memory engine: ", memory_reason_);
  }
  return report;
}

absl::StatusOr<std::vector<PinnedDiskExport>> QemuCapture::ExportDisks() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  return disks_.Export();
}

absl::Status QemuCapture::WaitForMemory(absl::Duration stall_limit) {
  if (!options_.memory) return absl::FailedPreconditionError("no memory was asked for");
  return memory_->Await(stall_limit, nullptr);
}

void QemuCapture::Cancel() {
  cancelled_ = true;
  if (memory_ != nullptr) memory_->Cancel();
}

absl::Status QemuCapture::Release(bool committed) {
  if (std::exchange(released_, true)) return absl::OkStatus();
  absl::Status result;
  if (migration_.running()) result = memory_->End();
  // Whoever held the guard has resumed; this is for a guard that could not.
  machine_->run_state.EndPause();
  if (may_be_paused_) result = FirstError(result, ResumeVcpus(qmp(), machine_->command_deadline));
  result = FirstError(result, disks_.Release(committed));
  result = FirstError(result, migration_.Release());
  if (migration_.running()) {  // QEMU is silent.
    machine_->earlier_migration = true;
    machine_->earlier_stream = memory_->stream();
  }
  if (memory_ != nullptr) memory_->Close(committed);
  machine_->unswept = !result.ok();
  machine_->capture_active = false;
  return qmp().connected() ? result : absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<VmCapture>> PrepareQemuCapture(std::shared_ptr<QemuMachine> machine,
                                                              const CaptureOptions& options, OwnedFd memory_sink) {
  if (machine->capture_active.exchange(true)) {
    return absl::FailedPreconditionError("another capture of this VM is running; wait for it or end it");
  }
  auto capture = std::make_unique<QemuCapture>(std::move(machine), options);
  STILL_RETURN_IF_ERROR(capture->Prepare(std::move(memory_sink)));
  return std::unique_ptr<VmCapture>(std::move(capture));
}

}  // namespace still::session
