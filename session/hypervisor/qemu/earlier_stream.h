// The memory stream of a capture that has ended before QEMU was done with it: the next capture begins behind it.
#pragma once

#include "base/status.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

// Waits until QEMU has no migration any more, and lets go of machine.earlier_stream then. Only the capture that has
// capture_active may call it. FAILED_PRECONDITION: it takes longer than a command may.
absl::Status AwaitEarlierStream(QemuMachine& machine);

}  // namespace still::session
