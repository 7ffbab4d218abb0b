// Starts QEMU and drives it as a Vm.
#pragma once

#include <memory>
#include <string>

#include "base/status.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

struct QemuOptions {
  std::string binary;  // Empty: $STILL_QEMU, else qemu-system-x86_64 of the PATH.
  // False: memory is saved while the VM stands still, as on hosts without userfaultfd.
  bool background_memory = true;
  // False: memory is saved by QEMU's own stream, as where there is no memory engine.
  bool memory_engine = true;
  // MemorySaver::Options, for tests.
  uint32_t leave_out_of_protection = 0;
  // For every command outside a pause, and for how long a hypervisor that writes no memory is waited for.
  absl::Duration command_deadline = absl::Seconds(10);
};

// Starts the VM that `config` describes; with incoming state it is loaded when this returns, and paused. Blocks up to
// some 20 s for a hypervisor that does not come up. Uses `qemu.log`,
// `console.log`, `nbd.sock` and files named `capture-*` in config.directory.
//
// NOT_FOUND, PERMISSION_DENIED: a file of the configuration. INVALID_ARGUMENT: the configuration. FAILED_PRECONDITION:
// QEMU refused, in its words.
absl::StatusOr<std::unique_ptr<Vm>> StartQemu(const VmConfig& config);
absl::StatusOr<std::unique_ptr<Vm>> StartQemuWith(const QemuOptions& options, const VmConfig& config);

}  // namespace still::session
