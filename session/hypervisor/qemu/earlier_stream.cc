#include "session/hypervisor/qemu/earlier_stream.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr absl::Duration kStreamLook = absl::Milliseconds(50);
// A stream that has not moved for so long may wait for what never comes.
constexpr absl::Duration kStuck = absl::Seconds(1);
// How long the VM may stand still for it then.
constexpr absl::Duration kLongestStop = absl::Milliseconds(500);

absl::StatusOr<bool> HasMigration(QemuMachine& machine) {
  // A migration that has ended is there until QEMU's main loop has cleaned up behind it, and "migrate" would fail in the
  // pause ("duplicate yank instance"): seen with a capture right after one that was abandoned.
  STILL_ASSIGN_OR_RETURN(json instances, machine.qmp->Execute("query-yank", json::object(), machine.command_deadline));
  return std::any_of(instances.begin(), instances.end(),
                     [](const json& instance) { return TextAt(instance, "type") == "migration"; });
}

// A `cont` that QEMU executes while its background snapshot is stopping the vcpus lets them run on, and the snapshot waits
// for ever for them to stop (do_vm_stop sets the run state before pause_all_vcpus, which lets others run while it waits;
// seen with 7.2 and a `migrate` that was executed late). Stopped once more, they are what it waits for.
absl::Status Free(QemuMachine& machine) {
  LogWarning("an earlier memory stream does not move; the machine is stopped for a moment, which it may wait for");
  QmpSubscription resumed = machine.qmp->Subscribe({"RESUME"});
  machine.run_state.BeginPause(machine.command_deadline);
  absl::Status stopped = machine.qmp->Run("stop", json::object(), machine.command_deadline);
  // It resumes the vcpus by itself, except where it found them stopped (QEMU 9.0 and newer).
  if (stopped.ok()) (void)resumed.Next(kLongestStop);
  machine.run_state.EndPause();
  return FirstError(stopped, ResumeVcpus(*machine.qmp, machine.command_deadline));
}

}  // namespace

absl::Status AwaitEarlierStream(QemuMachine& machine) {
  const absl::Duration deadline = Clock::Real().Monotonic() + machine.command_deadline;
  absl::Duration moved_at = Clock::Real().Monotonic();
  uint64_t moved_bytes = 0;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool there, HasMigration(machine));
    if (!there) {
      // Whoever began it wanted the VM to run and sent `cont` behind a `migrate` that was executed late. Since 9.0 QEMU
      // restores the run state that the snapshot has found, "paused", in a bottom half that may come after that `cont`: a VM
      // that is called paused then, though its vcpus run. Now nothing comes after it any more.
      if (machine.earlier_migration) STILL_RETURN_IF_ERROR(ResumeVcpus(*machine.qmp, machine.command_deadline));
      machine.earlier_migration = false;
      machine.earlier_stream.reset();
      return absl::OkStatus();
    }
    const absl::Duration now = Clock::Real().Monotonic();
    if (machine.earlier_migration) {
      const uint64_t bytes = machine.earlier_stream == nullptr ? 0 : machine.earlier_stream->bytes_read();
      if (std::exchange(moved_bytes, bytes) != bytes) moved_at = now;
      if (now - moved_at >= kStuck) {
        STILL_RETURN_IF_ERROR(Free(machine));
        moved_at = Clock::Real().Monotonic();
      }
    }
    if (now >= deadline) {
      return absl::FailedPreconditionError("the hypervisor is still ending an earlier memory stream; try again");
    }
    Clock::Real().Sleep(kStreamLook);
  }
}

}  // namespace still::session
