// MemorySave: how one capture gets the machine's memory to its reader. The ways, the best first: the memory engine
// (engine_save.h), QEMU's own stream in the background, QEMU's own stream while the VM stands still (stream_save.h).
//
//   prepared            while the VM runs; what a way cannot do it says then, and the next one is taken
//   LastRound           right before the pause
//   Protect             in the pause, before the migration begins
//   Resumed             as soon as the VM runs
//   Await               until everything is with the reader; or End, when nobody wants it any more
//
// Calls come from the capture's thread, but Cancel() and bytes() from any.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/qemu/memory_relay.h"
#include "session/hypervisor/qemu/qemu_migration.h"

namespace still::session {

class MemorySave {
 public:
  virtual ~MemorySave() = default;

  virtual const char* method() const = 0;  // PauseReport::memory_method
  virtual absl::Status LastRound() { return absl::OkStatus(); }
  // Blocks for at most `left`, what is left of the pause.
  virtual absl::Status Protect(absl::Duration left) = 0;
  virtual absl::Status Resumed(absl::Time when) = 0;
  // DEADLINE_EXCEEDED: nothing moved for `stall_limit`. `budget`: of a VM that stands still meanwhile, where that was not
  // asked for.
  virtual absl::Status Await(absl::Duration stall_limit, const PauseBudget* budget) = 0;
  // Ends a migration that has begun and that nobody waits for any more. An error: QEMU is silent.
  virtual absl::Status End() = 0;
  virtual void Cancel() = 0;
  // Nothing holds the guest any more. `committed`: the reader keeps what it has. The last call but Cancel().
  virtual void Close(bool /*committed*/) {}
  // That the reader has been given.
  virtual uint64_t bytes() const = 0;
  // What QEMU still writes when it has not ended: whoever is to keep that open. Null: QEMU holds it itself.
  virtual std::shared_ptr<MemoryRelay> stream() const { return nullptr; }
  // What the report of the pause says of it.
  virtual void AddTo(PauseReport& report) const { report.memory_method = method(); }
};

}  // namespace still::session
