// The critical window: from the freeze to the thaw. It owns the order of the steps, their guards and their report, and
// knows neither repositories nor how the hypervisor does its part.
//
//   quiesce -> flush -> recheck -> pause -> pin_disks -> save_state (ends the pause) -> thaw
//
// Whatever happens (an error, a cancel, an exception of the world), the VM runs and the guest is thawed when Run
// returns, or the report says that it could not be verified. Every step's contract is at its declaration in
// critical_window.cc.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"
#include "session/guest/frozen_guest.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

struct WindowOptions {
  sessionpb::QuiescePolicy quiesce = sessionpb::QUIESCE_TRY;
  FreezeOptions freeze;  // `cancelled` is the observer's.
  // The disks of the capture: each must be proven. Empty: what the machine's disks are is not known.
  google::protobuf::RepeatedPtrField<manifestpb::Disk> disks;
};

struct WindowPhase {
  std::string name;
  absl::Duration start;  // Clock::Monotonic.
  absl::Duration end;
};

// Hears of the window's progress, from the thread that runs it. Must not block: a frozen guest waits.
struct WindowObserver {
  std::function<void(const std::string& step, absl::Duration now)> on_start = [](const std::string&, absl::Duration) {};
  std::function<void(const WindowPhase&)> on_end = [](const WindowPhase&) {};
  // Asked before each step.
  std::function<bool()> cancelled = [] { return false; };
};

struct WindowReport {
  absl::Time point;
  manifestpb::Consistency consistency;
  manifestpb::Windows windows;
  std::string memory_point;         // PauseReport's.
  uint32_t pending_thaw_hooks = 0;  // They run on in the guest: QuiesceStatus tells how they end.
};

// The guest as the window sees it; the seam for tests. Implemented over GuestLink by MakeGuestFreezer.
class FreezeGuard {
 public:
  virtual ~FreezeGuard() = default;  // Thaws what is still frozen.
  virtual const guestpb::QuiesceResponse& report() const = 0;
  // The guest was reset since: nothing is frozen any more.
  virtual bool GuestRestarted() const { return false; }
  // The guest's CLOCK_BOOTTIME at a moment of the call; zero: the agent does not tell.
  virtual absl::StatusOr<absl::Duration> Recheck(absl::Duration margin) = 0;
  // ABORTED with GuestRestarted(): the guest was reset.
  virtual absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration timeout) = 0;
};
using Freezer = std::function<absl::StatusOr<std::unique_ptr<FreezeGuard>>(const FreezeOptions&)>;
Freezer MakeGuestFreezer(GuestLink& link);

// Of each freeze the manifest keeps so many hooks; this is how it keeps one.
inline constexpr int kMaxHooksKept = 64;
void KeepHook(const guestpb::HookResult& hook, manifestpb::Consistency::Hook& kept);

class CriticalWindow {
 public:
  // `freezer` may be empty: no agent.
  CriticalWindow(Clock& clock, VmCapture& capture, Freezer freezer, WindowOptions options, WindowObserver observer);

  // Blocks for the length of the window. On an error the VM runs and the guest is thawed (or its lease will do it).
  absl::StatusOr<WindowReport> Run();

 private:
  using Step = absl::Status (CriticalWindow::*)();

  absl::Status RunStep(const char* name, Step step);
  absl::Status Quiesce();
  absl::Status Flush();
  absl::Status Recheck();
  absl::Status Pause();
  absl::Status PinDisks();
  absl::Status SaveState();
  absl::Status Thaw();

  void ReportFreeze(const guestpb::QuiesceResponse& report);
  void ReportThaw(const guestpb::ThawResponse& thaw);
  void ReportReset();
  void ReportDisks(const guestpb::QuiesceResponse& report);
  void ReportThawHooks(const guestpb::ThawResponse& thaw);
  // Empty: every file system that was frozen was so at the pause. Else why that is not proven.
  std::string WhyNotFrozenAtPause(const guestpb::ThawResponse& thaw) const;
  void Downgrade(std::string reason);
  void DowngradeUncovered();
  // With quiesce=require: FAILED_PRECONDITION when the level is less than FILESYSTEM.
  absl::Status RequireProof() const;
  absl::Status RequireOrDowngrade(const absl::Status& status, absl::string_view what);

  Clock& clock_;
  VmCapture& capture_;
  Freezer freezer_;
  const WindowOptions options_;
  WindowObserver observer_;

  WindowReport report_;
  absl::Duration freeze_started_;
  absl::Duration recheck_started_;
  bool held_at_pause_ = false;
  absl::Duration guest_recheck_;  // The guest's CLOCK_BOOTTIME at the recheck; zero: not told.
  // By the same clock: what the guest did later it did after the pause.
  absl::Duration guest_latest_pause_ = absl::InfiniteDuration();
  uint32_t frozen_count_ = 0;
  // Destroyed in reverse order: the VM runs again before the guest is thawed, because a thaw cannot run in a paused
  // guest.
  std::unique_ptr<FreezeGuard> frozen_;
  std::optional<PausedVm> paused_;
};

}  // namespace still::session
