// QemuMachine: what a running QEMU is to the parts of this folder: its control socket, its disks, where its files lie,
// and what it can do. Made by StartQemu, shared by the Vm and its captures.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/pin_pool.h"
#include "session/hypervisor/qemu/memory_relay.h"
#include "session/hypervisor/qemu/qemu_run_state.h"
#include "session/hypervisor/qemu/qmp_client.h"

namespace still::session {

// For commands outside the pause: they wait for nothing but QEMU's main loop.
inline constexpr absl::Duration kCommandDeadline = absl::Seconds(10);

// What QEMU has told of its guest. Shared by the machine and the thread that reads QMP, which may outlive it.
struct GuestEvents {
  std::atomic<bool> shut_down = false;
  std::atomic<uint64_t> resets = 0;
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
  Capabilities capabilities;
  absl::Duration command_deadline = kCommandDeadline;
  std::atomic<bool> capture_active = false;
  // A capture has ended that could not give everything back (capture_sweep.h). Whoever has capture_active clears it.
  std::atomic<bool> unswept = false;
  // Of a capture that has ended before QEMU had written all of its memory stream: the stream must stay open until QEMU is
  // done (memory_relay.h). Of whoever has capture_active.
  std::shared_ptr<MemoryRelay> earlier_stream;
};

absl::StatusOr<bool> QueryPaused(QmpClient& qmp, absl::Duration deadline = kCommandDeadline);
PinPool PinPoolOf(const QemuMachine& machine);

// `cont`, repeated while QEMU says that a migration "is not finalized yet" (the thread of the last one is still to be
// joined). OK when the vcpus run, also when they ran before.
absl::Status ResumeVcpus(QmpClient& qmp, absl::Duration deadline = kCommandDeadline);

absl::Status SetMigrationCapability(QmpClient& qmp, const std::string& name, bool on);

}  // namespace still::session
