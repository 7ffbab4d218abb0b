#include "session/capture/critical_window.h"

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "session/capture/disk_proof.h"
#include "session/capture/report_words.h"

namespace still::session {
namespace {

// What the lease must still hold when the pause begins: a stopped vcpu runs no timer, so only the way from the recheck
// to the stop counts; measured at 1-60 ms (docs/qemu.md), with room for a host under load.
constexpr absl::Duration kLeaseMargin = absl::Milliseconds(1500);
// How much faster than ours a guest's clock may run: NTP slews by 0.05 % at most; and its resolution.
constexpr double kClockDrift = 0.01;
constexpr absl::Duration kClockStep = absl::Milliseconds(1);
constexpr absl::Duration kThawTimeout = absl::Seconds(30);
// A guest can have any number of mounts; the manifest keeps this many of each kind and says how many there were.
constexpr int kMaxMountsKept = 256;

class LinkFreezeGuard final : public FreezeGuard {
 public:
  explicit LinkFreezeGuard(FrozenGuest frozen) : frozen_(std::move(frozen)) {}
  const guestpb::QuiesceResponse& report() const override { return frozen_.report(); }
  bool GuestRestarted() const override { return frozen_.GuestRestarted(); }
  absl::StatusOr<absl::Duration> Recheck(absl::Duration margin) override { return frozen_.Recheck(margin); }
  absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration timeout) override { return frozen_.Thaw(timeout); }

 private:
  FrozenGuest frozen_;
};

uint64_t Micros(absl::Duration duration) { return static_cast<uint64_t>(absl::ToInt64Microseconds(duration)); }

void KeepHooks(const google::protobuf::RepeatedPtrField<guestpb::HookResult>& hooks, manifestpb::Consistency& out) {
  for (const guestpb::HookResult& hook : hooks) {
    if (out.hooks_size() >= kMaxHooksKept) return;
    KeepHook(hook, *out.add_hooks());
  }
}

}  // namespace

void KeepHook(const guestpb::HookResult& hook, manifestpb::Consistency::Hook& kept) {
  kept.set_path(hook.path());
  kept.set_verb(hook.verb());
  kept.set_exit_code(hook.exit_code());
  kept.set_duration_us(hook.duration_us());
}

Freezer MakeGuestFreezer(GuestLink& link) {
  return [&link](const FreezeOptions& options) -> absl::StatusOr<std::unique_ptr<FreezeGuard>> {
    STILL_ASSIGN_OR_RETURN(FrozenGuest frozen, FrozenGuest::Freeze(link, options));
    return std::make_unique<LinkFreezeGuard>(std::move(frozen));
  };
}

CriticalWindow::CriticalWindow(Clock& clock, VmCapture& capture, Freezer freezer, WindowOptions options,
                               WindowObserver observer)
    : clock_(clock),
      capture_(capture),
      freezer_(std::move(freezer)),
      options_(std::move(options)),
      observer_(std::move(observer)) {}

absl::StatusOr<WindowReport> CriticalWindow::Run() {
  // Always, newest first: resume, then thaw.
  absl::Cleanup end_of_window = [this] {
    paused_.reset();
    frozen_.reset();
  };
  report_.consistency.set_level(manifestpb::Consistency::CRASH);
  STILL_RETURN_IF_ERROR(RunStep("quiesce", &CriticalWindow::Quiesce));
  STILL_RETURN_IF_ERROR(RunStep("flush", &CriticalWindow::Flush));
  STILL_RETURN_IF_ERROR(RunStep("recheck", &CriticalWindow::Recheck));
  STILL_RETURN_IF_ERROR(RunStep("pause", &CriticalWindow::Pause));
  STILL_RETURN_IF_ERROR(RunStep("pin_disks", &CriticalWindow::PinDisks));
  STILL_RETURN_IF_ERROR(RunStep("save_state", &CriticalWindow::SaveState));
  STILL_RETURN_IF_ERROR(RunStep("thaw", &CriticalWindow::Thaw));
  return std::move(report_);
}

absl::Status CriticalWindow::RunStep(const char* name, Step step) {
  observer_.on_start(name, clock_.Monotonic());
  if (observer_.cancelled()) return absl::CancelledError(absl::StrCat("capture cancelled before step ", name));
  WindowPhase phase{.name = name, .start = clock_.Monotonic()};
  absl::Status status = (this->*step)();
  phase.end = clock_.Monotonic();
  if (!status.ok()) return Annotate(status, absl::StrCat("step ", name));
  manifestpb::Windows::Phase& kept = *report_.windows.add_phases();
  kept.set_name(name);
  kept.set_duration_us(Micros(phase.end - phase.start));
  observer_.on_end(phase);
  return absl::OkStatus();
}

// Needs:            nothing; an agent makes it worth more.
// Does:             asks the agent to write back, run hooks and freeze; keeps its report.
// Undo:             frozen_ thaws.
// If we crash here: the guest's lease ends the freeze.
// Time bound:       the limits of write-back and hooks, and the lease (FrozenGuest::Freeze).
absl::Status CriticalWindow::Quiesce() {
  freeze_started_ = clock_.Monotonic();
  if (options_.quiesce == sessionpb::QUIESCE_OFF) {
    Downgrade("quiesce is off");
    return absl::OkStatus();
  }
  if (freezer_ == nullptr) {
    return RequireOrDowngrade(absl::FailedPreconditionError("the session has no vsock, so no agent"), "not frozen");
  }
  FreezeOptions freeze = options_.freeze;
  freeze.cancelled = observer_.cancelled;
  absl::StatusOr<std::unique_ptr<FreezeGuard>> frozen = freezer_(freeze);
  if (!frozen.ok()) return RequireOrDowngrade(frozen.status(), "not frozen");
  frozen_ = *std::move(frozen);
  ReportFreeze(frozen_->report());
  return RequireProof();
}

// Needs:            the freeze, so that little is written behind it.
// Does:             writes the disk images back, which the stop would do inside the pause.
// Undo:             none; it changes nothing.
// If we crash here: as in Quiesce.
// Time bound:       the longest pause that is allowed; what takes longer would make the pause longer.
absl::Status CriticalWindow::Flush() { return capture_.FlushDisks(); }

// Needs:            what Quiesce left.
// Does:             asks the agent, immediately before the pause, whether the freeze has held and holds long enough.
// Undo:             none; it changes nothing but the lease, which starts anew.
// If we crash here: as in Quiesce.
// Time bound:       2 s.
absl::Status CriticalWindow::Recheck() {
  if (frozen_ == nullptr) return absl::OkStatus();
  recheck_started_ = clock_.Monotonic();
  absl::StatusOr<absl::Duration> rechecked = frozen_->Recheck(kLeaseMargin);
  if (rechecked.ok()) {
    guest_recheck_ = *rechecked;
    return absl::OkStatus();
  }
  report_.consistency.set_level(manifestpb::Consistency::CRASH);
  return RequireOrDowngrade(rechecked.status(), "the freeze ended before the pause");
}

// Needs:            nothing; everything that can be prepared is prepared (VmCapture).
// Does:             stops the vcpus: this is the point.
// Undo:             paused_ resumes.
// If we crash here: the hypervisor ends with this process (docs/ARCHITECTURE.md, Processes): never left paused.
// Time bound:       the longest pause that is allowed.
absl::Status CriticalWindow::Pause() {
  STILL_ASSIGN_OR_RETURN(PausedVm paused, capture_.Pause());
  paused_.emplace(std::move(paused));
  report_.point = clock_.Now();
  // The lease was renewed after recheck_started_ and no vcpu runs any more: within the margin it cannot have ended
  // before.
  const absl::Duration since_recheck = clock_.Monotonic() - recheck_started_;
  held_at_pause_ = since_recheck < kLeaseMargin;
  // The vcpus have run for no longer than that since the guest told its time, and its clock is as good as ours.
  if (guest_recheck_ > absl::ZeroDuration()) {
    guest_latest_pause_ = guest_recheck_ + since_recheck * (1 + kClockDrift) + kClockStep;
  }
  // A reset is told before the pause that comes after it: one that is not told by now came after the point.
  if (frozen_ == nullptr || !frozen_->GuestRestarted() ||
      report_.consistency.level() < manifestpb::Consistency::FILESYSTEM) {
    return absl::OkStatus();
  }
  held_at_pause_ = false;
  return RequireOrDowngrade(absl::FailedPreconditionError("the guest was reset"), "the freeze ended before the pause");
}

// Needs:            the pause, by proof.
// Does:             pins every disk at this instant.
// Undo:             VmCapture::Release.
// If we crash here: as in Pause.
// Time bound:       what is left of the longest pause that is allowed.
absl::Status CriticalWindow::PinDisks() { return capture_.PinDisks(*paused_); }

// Needs:            the pause; the pins, so that memory and disks are of one instant.
// Does:             starts the memory stream and ends the pause.
// Undo:             VmCapture::Release; the guard has been handed over and resumes.
// If we crash here: as in Pause.
// Time bound:       what is left of the longest pause; where that was asked for, as long as the memory takes.
absl::Status CriticalWindow::SaveState() {
  PausedVm paused = *std::move(paused_);
  paused_.reset();
  STILL_ASSIGN_OR_RETURN(PauseReport report, capture_.SaveStateAndResume(std::move(paused)));
  report_.windows.set_pause_us(Micros(report.paused));
  report_.windows.set_commands_in_pause(static_cast<uint32_t>(report.commands.size()));
  report_.windows.set_memory_method(report.memory_method);
  report_.windows.set_memory_method_reason(report.memory_method_reason);
  report_.windows.set_reprotected_pages(report.reprotected_pages);
  report_.windows.set_protecting_us(Micros(report.protecting));
  report_.windows.set_memory_full_reason(report.memory_full_reason);
  report_.memory_point = report.memory_point;
  return absl::OkStatus();
}

// Needs:            a running VM.
// Does:             thaws and compares the answer with the freeze: what was not proven is not claimed.
// Undo:             none; it is itself one.
// If we crash here: the guest's lease ends the freeze.
// Time bound:       30 s; then the capture fails and the lease ends the freeze.
absl::Status CriticalWindow::Thaw() {
  if (frozen_ == nullptr) return absl::OkStatus();
  absl::StatusOr<guestpb::ThawResponse> thaw = frozen_->Thaw(kThawTimeout);
  // A guest that was reset after the point has nothing to thaw, and what is pinned was frozen. That it was, the hypervisor
  // says: a guest can answer anything.
  const bool reset = absl::IsAborted(thaw.status()) && frozen_->GuestRestarted();
  if (!thaw.ok() && !reset) return thaw.status();
  report_.windows.set_freeze_us(Micros(clock_.Monotonic() - freeze_started_));
  if (thaw.ok()) {
    ReportThaw(*thaw);
  } else {
    ReportReset();
  }
  frozen_.reset();
  return RequireProof();
}

absl::Status CriticalWindow::RequireProof() const {
  const manifestpb::Consistency& consistency = report_.consistency;
  if (options_.quiesce != sessionpb::QUIESCE_REQUIRE || consistency.level() >= manifestpb::Consistency::FILESYSTEM) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat("the freeze was not proven: ", consistency.downgrades(0)));
}

void CriticalWindow::ReportFreeze(const guestpb::QuiesceResponse& report) {
  manifestpb::Consistency& out = report_.consistency;
  for (const guestpb::FrozenMount& mount : report.frozen()) {
    if (out.frozen_size() >= kMaxMountsKept) break;
    if (mount.mount_point().empty()) break;  // What the agent only counts: one line before says how many.
    manifestpb::Consistency::Mount& kept = *out.add_frozen();
    kept.set_mount_point(mount.mount_point());
    kept.set_fs_type(mount.fs_type());
    kept.set_freeze_us(mount.freeze_us());
    kept.set_seen_by(mount.seen_by());
  }
  for (const guestpb::SkippedMount& mount : report.skipped()) {
    if (out.skipped_size() >= kMaxMountsKept) break;
    manifestpb::Consistency::Mount& kept = *out.add_skipped();
    kept.set_mount_point(mount.mount_point());
    kept.set_fs_type(mount.fs_type());
    kept.set_reason(PlainWords(guestpb::SkippedMount::Reason_Name(mount.reason())));
    kept.set_seen_by(mount.seen_by());
  }
  KeepHooks(report.hooks(), out);
  report_.windows.set_guest_presync_us(report.presync_us());
  report_.windows.set_guest_hooks_us(report.hooks_us());
  report_.windows.set_guest_freeze_us(report.freeze_us());
  if (report.frozen_size() > 0) report_.windows.set_guest_frozen_at_ns(report.frozen_at_ns());

  frozen_count_ = static_cast<uint32_t>(report.frozen_size());
  out.set_level(manifestpb::Consistency::FILESYSTEM);
  ReportDisks(report);
  if (report.frozen().empty() && out.downgrades_size() == 0) Downgrade("the guest has no freezable file system");
  if (report.hooks().empty() || out.level() < manifestpb::Consistency::FILESYSTEM) return;
  for (const guestpb::HookResult& hook : report.hooks()) {
    if (hook.exit_code() != 0) {
      out.add_downgrades(absl::StrCat("hook ", hook.path(), " ended with ", hook.exit_code()));
      return;
    }
  }
  out.set_level(manifestpb::Consistency::APPLICATION);
}

void CriticalWindow::ReportDisks(const guestpb::QuiesceResponse& report) {
  for (manifestpb::Consistency::DiskProof& proof : ProveDisks(options_.disks, report)) {
    if (!proof.covered()) Downgrade(absl::StrCat("disk ", proof.name(), ": ", proof.reason()));
    *report_.consistency.add_disks() = std::move(proof);
  }
  if (!options_.disks.empty()) return;
  // Nothing is known disk by disk, so every mount counts, wherever it may lie.
  for (const guestpb::SkippedMount& mount : report.skipped()) {
    if (mount.reason() == guestpb::SkippedMount::ALREADY_FROZEN ||
        mount.reason() == guestpb::SkippedMount::UNREACHABLE) {
      Downgrade(absl::StrCat(mount.mount_point(), " was not frozen by us: ",
                             PlainWords(guestpb::SkippedMount::Reason_Name(mount.reason()))));
    }
  }
}

void CriticalWindow::ReportThaw(const guestpb::ThawResponse& thaw) {
  manifestpb::Consistency& out = report_.consistency;
  out.set_thawed(thaw.thawed());
  out.set_thaw_cause(PlainWords(guestpb::ThawCause_Name(thaw.cause())));
  if (!thaw.by_token()) out.set_thawed_by(thaw.requester());
  ReportThawHooks(thaw);
  if (out.level() < manifestpb::Consistency::FILESYSTEM) return;
  NoteWritten(thaw.written(), options_.disks, frozen_->report(), out);
  DowngradeUncovered();
  if (std::string why = WhyNotFrozenAtPause(thaw); !why.empty()) Downgrade(std::move(why));
}

void CriticalWindow::ReportReset() {
  manifestpb::Consistency& out = report_.consistency;
  out.set_thaw_cause("guest reset");
  if (out.level() < manifestpb::Consistency::FILESYSTEM) return;
  NoteUntold(options_.disks, frozen_->report(), out);
  DowngradeUncovered();
}

std::string CriticalWindow::WhyNotFrozenAtPause(const guestpb::ThawResponse& thaw) const {
  // Somebody else, at a time that nobody knows.
  if (thaw.thawed_early_size() > 0) return absl::StrCat(thaw.thawed_early(0), " was thawed early by somebody else");
  if (thaw.thawed() < frozen_count_) {
    return absl::StrCat("only ", thaw.thawed(), " of ", frozen_count_, " file systems were still frozen at the thaw");
  }
  if (thaw.cause() == guestpb::REQUESTED && thaw.by_token()) return "";  // By us, after the resume.
  const bool by_lease = thaw.cause() == guestpb::LEASE_EXPIRED;
  if (by_lease && held_at_pause_) return "";
  if (absl::Nanoseconds(static_cast<int64_t>(thaw.thaw_began_ns())) > guest_latest_pause_) return "";
  if (thaw.cause() != guestpb::REQUESTED) {
    return absl::StrCat("the guest was thawed early: ", report_.consistency.thaw_cause());
  }
  return absl::StrCat("the guest was thawed by ", thaw.requester().empty() ? "somebody else" : thaw.requester(),
                      ", perhaps before the point");
}

void CriticalWindow::ReportThawHooks(const guestpb::ThawResponse& thaw) {
  KeepHooks(thaw.hooks(), report_.consistency);
  report_.pending_thaw_hooks = thaw.hooks_pending();
  // They run backwards, those that have ended before the others.
  const auto& hooks = frozen_->report().hooks();
  for (int i = hooks.size() - 1 - thaw.hooks_size(); i >= 0; --i) {
    if (thaw.hooks_pending() == 0 || report_.consistency.hooks_size() >= kMaxHooksKept) return;
    manifestpb::Consistency::Hook& kept = *report_.consistency.add_hooks();
    kept.set_path(hooks.Get(i).path());
    kept.set_verb("thaw");
    kept.set_unfinished(true);
  }
}

void CriticalWindow::Downgrade(std::string reason) {
  report_.consistency.set_level(manifestpb::Consistency::CRASH);
  report_.consistency.add_downgrades(std::move(reason));
}

void CriticalWindow::DowngradeUncovered() {
  for (const manifestpb::Consistency::DiskProof& proof : report_.consistency.disks()) {
    if (!proof.covered()) Downgrade(absl::StrCat("disk ", proof.name(), ": ", proof.reason()));
  }
}

absl::Status CriticalWindow::RequireOrDowngrade(const absl::Status& status, absl::string_view what) {
  if (options_.quiesce == sessionpb::QUIESCE_REQUIRE) return status;
  LogWarning("capture goes on without a proven freeze", {{"reason", status.ToString()}});
  Downgrade(absl::StrCat(what, ": ", status.message()));
  return absl::OkStatus();
}

}  // namespace still::session
