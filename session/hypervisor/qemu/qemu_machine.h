// QemuMachine: what a running QEMU is to the parts of this folder: its control socket, its disks, where its files lie,
// and what it can do. Made by StartQemu, shared by the Vm and its captures.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/pin_pool.h"
#include "session/hypervisor/qemu/memory_relay.h"
#include "session/hypervisor/qemu/qemu_memory.h"
#include "session/hypervisor/qemu/qemu_run_state.h"
#include "session/hypervisor/qemu/qmp_client.h"
#include "session/memory/memory_engine.h"

namespace still::session {

// For commands outside the pause: they wait for nothing but QEMU's main loop.
inline constexpr absl::Duration kCommandDeadline = absl::Seconds(10);

// What QEMU has told of its guest. Shared by the machine and the thread that reads QMP, which may outlive it.
struct GuestEvents {
  std::atomic<bool> shut_down = false;
  std::atomic<uint64_t> resets = 0;
};

// What is written to the memory is noted since a committed capture, for the next one.
struct TrackedMemory {
  std::shared_ptr<MemoryEngine> engine;  // Shared with the capture that is under way.
  std::string point;                     // PauseReport::memory_point.
};

struct QemuMachine {
  std::shared_ptr<GuestEvents> guest = std::make_shared<GuestEvents>();
  QemuRunState run_state;
  std::unique_ptr<QmpClient> qmp;  // Behind what its events change.
  std::vector<DiskConfig> disks;   // In the order of DiskNode(index).
  std::string directory;
  // Of a QEMU that is not root (qemu_confinement.h): whose the files in it must be that it opens, and what it calls it.
  std::optional<ProcessUser> user;
  std::string directory_name;
  std::string sessions;         // VmConfig::sessions.
  uint64_t pin_pool_limit = 0;  // PinPool's.
  pid_t pid = -1;
  uint64_t memory_bytes = 0;
  std::optional<QemuMemory> memory;      // Where the memory engine can work with it.
  uint32_t leave_out_of_protection = 0;  // MemorySaver::Options, for tests.
  std::optional<TrackedMemory> tracked;  // Of whoever has capture_active.
  std::string image_point;               // The memory is a private mapping of this: IncomingState::memory_point.
  Capabilities capabilities;
  absl::Duration command_deadline = kCommandDeadline;
  std::atomic<bool> capture_active = false;
  // A capture has ended that could not give everything back (capture_sweep.h). Whoever has capture_active clears it.
  std::atomic<bool> unswept = false;
  // A capture has ended before its migration had. Of whoever has capture_active, like the next one.
  bool earlier_migration = false;
  // The stream that QEMU is still to write then: it must stay open until QEMU is done (memory_relay.h).
  std::shared_ptr<MemoryRelay> earlier_stream;
};

absl::StatusOr<bool> QueryPaused(QmpClient& qmp, absl::Duration deadline = kCommandDeadline);
PinPool PinPoolOf(const QemuMachine& machine);

// `cont`, repeated while QEMU says that a migration "is not finalized yet" (the thread of the last one is still to be
// joined). OK when the vcpus run, also when they ran before.
absl::Status ResumeVcpus(QmpClient& qmp, absl::Duration deadline = kCommandDeadline);

// All of them or, on an error, none.
absl::Status SetMigrationCapabilities(QmpClient& qmp, const std::vector<std::pair<std::string, bool>>& capabilities,
                                      absl::Duration deadline = kCommandDeadline);

}  // namespace still::session
