// Adopts a hypervisor that runs already and has no interface to ask: any VMM, known by its pid and its disk files.
//
// It can be paused (SIGSTOP, SIGCONT) and its disks pinned; memory and devices stay its own, so its snapshots are of
// disks only, crash-consistent unless an agent froze the guest. What to expect of SIGSTOP (docs/process-vm.md):
//   - the guest's clock jumps by the length of the pause, so the pause has a limit (CaptureOptions::max_pause);
//   - a thread in an uninterruptible system call stops only when that is over, so the stop is waited for, with a limit;
//   - writes that the VMM has queued but not begun are not in the files: as after a power cut.
#pragma once

#include <memory>

#include "base/status.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

// Needs config.adopt_pid. NOT_FOUND: no such process. FAILED_PRECONDITION: it is stopped, traced, or does not hold one
// of the disks open, so that stopping it would not stop the writes. The destructor lets it run on: Kill() ends the
// adoption, not the process.
absl::StatusOr<std::unique_ptr<Vm>> AdoptProcess(const VmConfig& config);

}  // namespace still::session
