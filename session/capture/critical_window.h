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
  FreezeOptions freeze;
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
};

// The guest as the window sees it; the seam for tests. Implemented over GuestLink by MakeGuestFreezer.
class FreezeGuard {
 public:
  virtual ~FreezeGuard() = default;  // Thaws what is still frozen.
  virtual const guestpb::QuiesceResponse& report() const = 0;
  virtual absl::Status Recheck(absl::Duration margin) = 0;
  virtual absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration timeout) = 0;
};
using Freezer = std::function<absl::StatusOr<std::unique_ptr<FreezeGuard>>(const FreezeOptions&)>;
Freezer MakeGuestFreezer(GuestLink& link);

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
  void Downgrade(std::string reason);
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
  uint32_t frozen_count_ = 0;
  // Destroyed in reverse order: the VM runs again before the guest is thawed, because a thaw cannot run in a paused
  // guest.
  std::unique_ptr<FreezeGuard> frozen_;
  std::optional<PausedVm> paused_;
};

}  // namespace still::session
