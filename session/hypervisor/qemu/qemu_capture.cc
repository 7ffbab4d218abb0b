#include "session/hypervisor/qemu/qemu_capture.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "session/hypervisor/image_flush.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/qemu/capture_sweep.h"
#include "session/hypervisor/qemu/earlier_stream.h"
#include "session/hypervisor/qemu/memory_relay.h"
#include "session/hypervisor/qemu/qemu_disk.h"
#include "session/hypervisor/qemu/ram_priming.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr char kMemoryFd[] = "still-memory";
// No throttle: as long as the stream lasts, the guest waits for pages that are not yet in it.
constexpr uint64_t kNoBandwidthLimit = uint64_t{1} << 40;
// While the VM runs and nobody waits.
constexpr absl::Duration kLongFlush = absl::Seconds(60);
// How often a wait looks for Cancel() and for progress.
constexpr absl::Duration kTick = absl::Milliseconds(50);
// How often QEMU is asked, inside the pause, whether the memory is write-protected.
constexpr absl::Duration kProtectionTick = absl::Milliseconds(1);

class QemuCapture : public VmCapture {
 public:
  QemuCapture(std::shared_ptr<QemuMachine> machine, const CaptureOptions& options)
      : machine_(std::move(machine)),
        options_(options),
        background_(options.memory && machine_->capabilities.background_memory),
        budget_(options.max_pause),
        disks_(*machine_),
        events_(qmp().Subscribe({"STOP", "RESUME", "MIGRATION"})) {}
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
  uint64_t memory_bytes_written() const override { return relay_ == nullptr ? 0 : relay_->bytes(); }
  absl::Status Release(bool committed) override;
  void Cancel() override;

 private:
  // What is known of QEMU's migration, the writer of the memory stream.
  enum class Migration { kNone, kStarting, kActive, kCompleted, kFailed };

  QmpClient& qmp() { return *machine_->qmp; }
  absl::Status CheckCancelled() const {
    return cancelled_ ? absl::CancelledError("the capture was cancelled") : absl::OkStatus();
  }
  absl::StatusOr<PauseReport> SaveInBackground();
  absl::StatusOr<PauseReport> SaveStopped(PausedVm& paused);
  absl::Status PrepareMemory(OwnedFd memory_sink);
  void Note(const QmpEvent& event);
  absl::Status NextEvent(absl::Duration timeout);
  absl::Status ActivateDisks();
  absl::Status StartMigration();
  absl::Status AwaitWriteProtection();
  absl::Status ContinueIfProtected();
  absl::Status AwaitMigration(absl::Duration stall_limit, const PauseBudget* budget);
  absl::Status MigrationError();
  absl::Status StopMigration();
  PauseReport Report(const char* method);

  bool migrating() const { return migration_ == Migration::kStarting || migration_ == Migration::kActive; }

  const std::shared_ptr<QemuMachine> machine_;  // Shared with the Vm, whose destruction this outlives safely.
  const CaptureOptions options_;
  const bool background_;
  PauseBudget budget_;
  DiskPins disks_;
  // Null without memory; set before anybody else knows the capture. Shared with the machine, once that has to keep the
  // stream open.
  std::shared_ptr<MemoryRelay> relay_;
  QmpSubscription events_;
  bool sink_passed_ = false;
  bool may_be_paused_ = false;
  bool released_ = false;
  bool disks_wanted_ = false;
  Migration migration_ = Migration::kNone;
  std::vector<std::string> commands_;  // Inside the pause.
  uint64_t resets_at_pause_ = 0;
  absl::Time stopped_at_ = absl::InfinitePast();
  absl::Time resumed_at_ = absl::InfinitePast();
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
  if (options_.memory) STILL_RETURN_IF_ERROR(PrepareMemory(std::move(memory_sink)));
  return disks_.Prepare({.capture_id = absl::StrFormat("%016x", RandomU64()),
                         .repository_id = options_.repository_id,
                         .base_bitmaps = options_.base_bitmaps,
                         .space_limit = options_.pin_space_limit,
                         .stall_limit = options_.disk_stall_limit,
                         .filters_before_pause = background_ || !options_.memory});
}

absl::Status QemuCapture::PrepareMemory(OwnedFd memory_sink) {
  STILL_RETURN_IF_ERROR(SetMigrationCapability(qmp(), "background-snapshot", background_));
  STILL_RETURN_IF_ERROR(
      qmp().Run("migrate-set-parameters", {{"max-bandwidth", kNoBandwidthLimit}}, machine_->command_deadline));
  STILL_ASSIGN_OR_RETURN(relay_, MemoryRelay::Start(std::move(memory_sink),
                                                    {.when_lost = background_ ? MemoryRelay::WhenReaderIsLost::kReadOn
                                                                              : MemoryRelay::WhenReaderIsLost::kClose,
                                                     .stall_limit = options_.memory_stall_limit}));
  // QEMU holds this end alone from here on: its end is the end of the stream.
  OwnedFd source = relay_->TakeSource();
  STILL_RETURN_IF_ERROR(qmp().RunWithFd("getfd", {{"fdname", kMemoryFd}}, source.get(), machine_->command_deadline));
  sink_passed_ = true;
  if (!background_) return absl::OkStatus();
  absl::StatusOr<Primed> primed = PrimeRam(machine_->pid, machine_->memory_bytes);
  if (primed.ok()) {
    LogInfo("memory primed", {{"pages_touched", primed->touched_pages}, {"bytes_collapsed", primed->collapsed_bytes}});
  } else {
    LogWarning("memory is not primed: this pause is longer", {{"error", primed.status().ToString()}});
  }
  return absl::OkStatus();
}

// `stop` writes the images back inside the pause. It has little to write then.
absl::Status QemuCapture::FlushDisks() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  return budget_.Explain(FlushImages(machine_->disks, options_.max_pause));
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
  stopped_at_ = absl::Now();
  resets_at_pause_ = machine_->guest->resets;
  while (NextEvent(absl::ZeroDuration()).ok()) {
  }
  resumed_at_ = absl::InfinitePast();  // What resumed the VM until now did so before this pause.
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
  absl::StatusOr<PauseReport> report = background_ ? SaveInBackground() : SaveStopped(paused);
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
  STILL_RETURN_IF_ERROR(StartMigration());
  STILL_RETURN_IF_ERROR(AwaitWriteProtection());
  return Report("background");
}

absl::StatusOr<PauseReport> QemuCapture::SaveStopped(PausedVm& paused) {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  if (options_.memory) {
    STILL_RETURN_IF_ERROR(StartMigration());
    STILL_RETURN_IF_ERROR(AwaitMigration(options_.memory_stall_limit, options_.stop_for_memory ? nullptr : &budget_));
    if (options_.stop_for_memory) budget_.Forgive();
    if (disks_wanted_) {
      STILL_RETURN_IF_ERROR(budget_.Explain(ActivateDisks()));
      STILL_RETURN_IF_ERROR(budget_.Explain(disks_.Pin(budget_, commands_)));
    }
  }
  commands_.push_back("cont");
  STILL_RETURN_IF_ERROR(Annotate(paused.Resume(), "resume the VM"));
  while (NextEvent(absl::ZeroDuration()).ok()) {
  }
  return Report(options_.memory ? "stopped" : "none");
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

PauseReport QemuCapture::Report(const char* method) {
  if (resumed_at_ == absl::InfinitePast()) resumed_at_ = absl::Now();
  return {.paused = resumed_at_ - stopped_at_, .commands = commands_, .memory_method = method};
}

void QemuCapture::Note(const QmpEvent& event) {
  if (event.name == "STOP") {
    stopped_at_ = event.time;
  } else if (event.name == "RESUME") {
    resumed_at_ = event.time;
  } else {
    std::string status = TextAt(event.data, "status");
    if (status == "active") migration_ = Migration::kActive;
    if (status == "completed") migration_ = Migration::kCompleted;
    if (status == "failed" || status == "cancelled") migration_ = Migration::kFailed;
  }
}

absl::Status QemuCapture::NextEvent(absl::Duration timeout) {
  STILL_ASSIGN_OR_RETURN(QmpEvent event, events_.Next(timeout));
  Note(event);
  return absl::OkStatus();
}

// One command: capabilities, parameters and the descriptor are set.
absl::Status QemuCapture::StartMigration() {
  // A reset that the guest asked for right before the pause is done inside of it, and leaves a run state from which QEMU
  // 7.2 aborts when a snapshot is begun (runstate_set: "prelaunch" to "paused").
  if (machine_->guest->resets != resets_at_pause_) {
    return absl::UnavailableError("the guest was reset in the moment of its pause; try again");
  }
  commands_.push_back("migrate");
  absl::StatusOr<absl::Duration> left = budget_.Left();
  if (!left.ok()) return budget_.Explain(left.status());
  migration_ = Migration::kStarting;
  sink_passed_ = false;  // The migration owns it now, and closes it in any case.
  absl::Status started = qmp().Run("migrate", {{"uri", absl::StrCat("fd:", kMemoryFd)}}, *left);
  return budget_.Explain(Annotate(started, "save the memory"));
}

// Until QEMU 8.2 a background snapshot resumes the VM by itself once all memory is write-protected; since 9.0 a VM that was
// stopped before stays stopped, and no event says that the protection stands. So QEMU is asked, and told to go on.
absl::Status QemuCapture::AwaitWriteProtection() {
  bool protecting = false;  // Nothing is asked before the migration's own thread has begun.
  while (resumed_at_ == absl::InfinitePast()) {
    absl::StatusOr<absl::Duration> left = budget_.Left();
    absl::Status next = left.ok() ? NextEvent(protecting ? std::min(kProtectionTick, *left) : *left) : left.status();
    const bool silent = left.ok() && absl::IsDeadlineExceeded(next);
    if (!next.ok() && !(silent && protecting)) return budget_.Explain(Annotate(next, "write-protect the memory"));
    if (migration_ == Migration::kFailed) return Annotate(MigrationError(), "write-protect the memory");
    protecting = protecting || migration_ != Migration::kStarting;
    if (silent) {
      STILL_RETURN_IF_ERROR(budget_.Explain(Annotate(ContinueIfProtected(), "write-protect the memory")));
    }
  }
  return absl::OkStatus();
}

// The first page is written after the protection, never before it. QEMU's bottom half that restores the run state was
// scheduled before that page, so it has run when the next command, query-status, is answered: a "cont" that it met would
// leave the vcpus running in a VM that says it is paused.
absl::Status QemuCapture::ContinueIfProtected() {
  commands_.push_back("query-migrate");
  STILL_ASSIGN_OR_RETURN(absl::Duration left, budget_.Left());
  STILL_ASSIGN_OR_RETURN(json state, qmp().Execute("query-migrate", json::object(), left));
  const json& ram = Member(state, "ram");
  const bool pages = NumberAt(ram, "normal") > 0 || NumberAt(ram, "duplicate") > 0;
  if (!pages) return absl::OkStatus();
  commands_.push_back("query-status");
  STILL_ASSIGN_OR_RETURN(left, budget_.Left());
  STILL_ASSIGN_OR_RETURN(bool paused, QueryPaused(qmp(), left));
  if (!paused) return absl::OkStatus();  // It went on by itself: RESUME is on its way.
  commands_.push_back("cont");
  STILL_ASSIGN_OR_RETURN(left, budget_.Left());
  return ResumeVcpus(qmp(), left);
}

absl::StatusOr<std::vector<PinnedDiskExport>> QemuCapture::ExportDisks() {
  STILL_RETURN_IF_ERROR(CheckCancelled());
  return disks_.Export();
}

absl::Status QemuCapture::WaitForMemory(absl::Duration stall_limit) {
  if (!options_.memory) return absl::FailedPreconditionError("no memory was asked for");
  relay_->SetStallLimit(stall_limit);
  return AwaitMigration(stall_limit, nullptr);
}

void QemuCapture::Cancel() {
  cancelled_ = true;
  if (relay_ != nullptr) relay_->Cancel();
}

// The relay watches the reader, this watches QEMU; `budget` when the VM stands still meanwhile and it was not asked for.
absl::Status QemuCapture::AwaitMigration(absl::Duration stall_limit, const PauseBudget* budget) {
  // A hypervisor that writes nothing, though its reader would take it, is only short of processor time for a while.
  const absl::Duration silence_limit = std::max(2 * stall_limit, machine_->command_deadline);
  absl::Duration moved_at = Clock::Real().Monotonic();
  uint64_t moved_bytes = 0;
  while (migrating()) {
    STILL_RETURN_IF_ERROR(relay_->status());
    absl::Duration now = Clock::Real().Monotonic();
    if (budget != nullptr && !budget->Left().ok()) {
      relay_->Cancel();
      return budget->Explain(absl::DeadlineExceededError("the memory takes longer to be written"));
    }
    if (uint64_t bytes = relay_->bytes_read(); bytes != moved_bytes) {
      moved_bytes = bytes;
      moved_at = now;
    }
    if (now - moved_at >= silence_limit) {
      relay_->Cancel();
      return absl::DeadlineExceededError(
          absl::StrCat("the hypervisor wrote no memory for ", absl::FormatDuration(silence_limit)));
    }
    absl::Status next = NextEvent(std::min(kTick, stall_limit));
    if (!next.ok() && next.code() != absl::StatusCode::kDeadlineExceeded) return next;
  }
  if (migration_ != Migration::kCompleted) return FirstError(relay_->status(), MigrationError());
  // QEMU is done, the reader may not be: what it wrote last is still on its way.
  while (!relay_->WaitForEnd(kTick)) STILL_RETURN_IF_ERROR(relay_->status());
  return relay_->status();
}

absl::Status QemuCapture::MigrationError() {
  auto answer = qmp().Execute("query-migrate", json::object(), machine_->command_deadline);
  if (!answer.ok()) return answer.status();
  std::string reason = TextAt(*answer, "error-desc");
  if (reason.empty()) reason = TextAt(*answer, "status");
  return absl::AbortedError(absl::StrCat("the hypervisor gave the memory stream up: ", reason));
}

// Ends a migration that nobody waits for any more. In the background it must come to its own end (memory_relay.h says
// why), which takes as long as QEMU needs to write all memory into nothing.
absl::Status QemuCapture::StopMigration() {
  relay_->Cancel();
  if (!background_) STILL_RETURN_IF_ERROR(qmp().Run("migrate_cancel", json::object(), machine_->command_deadline));
  absl::Duration deadline = Clock::Real().Monotonic() + machine_->command_deadline;
  uint64_t moved_bytes = 0;
  while (migrating()) {
    if (uint64_t bytes = relay_->bytes_read(); bytes != moved_bytes) {
      moved_bytes = bytes;
      deadline = Clock::Real().Monotonic() + machine_->command_deadline;
    }
    absl::Status next = NextEvent(kTick);
    if (next.ok()) continue;
    if (next.code() != absl::StatusCode::kDeadlineExceeded || Clock::Real().Monotonic() > deadline) {
      return Annotate(next, "end the memory stream");
    }
  }
  return absl::OkStatus();
}

absl::Status QemuCapture::Release(bool committed) {
  if (std::exchange(released_, true)) return absl::OkStatus();
  absl::Status result;
  if (migrating()) result = StopMigration();
  // Whoever held the guard has resumed; this is for a guard that could not.
  machine_->run_state.EndPause();
  if (may_be_paused_) result = FirstError(result, ResumeVcpus(qmp(), machine_->command_deadline));
  result = FirstError(result, disks_.Release(committed));
  if (sink_passed_) {
    result = FirstError(result, qmp().Run("closefd", {{"fdname", kMemoryFd}}, machine_->command_deadline));
  }
  // QEMU is silent. It still has its end of the stream, and will write into it when it goes on.
  if (migrating()) machine_->earlier_stream = relay_;
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
