// One capture of a QEMU VM: VmCapture over QMP. What is sent, in which order and why: docs/qemu.md.
#pragma once

#include <memory>

#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

// Everything that can be done while the VM runs. FAILED_PRECONDITION when the VM is paused or another capture is on.
absl::StatusOr<std::unique_ptr<VmCapture>> PrepareQemuCapture(std::shared_ptr<QemuMachine> machine,
                                                              const CaptureOptions& options, OwnedFd memory_sink);

}  // namespace still::session
