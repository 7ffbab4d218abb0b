// Writes disk images back to their storage while the machine runs: stopping it does the same, inside the pause, which is
// then as long as what has gathered. Used by every hypervisor that works on files.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/hypervisor/vm_config.h"

namespace still::session {

// fdatasync(2) of each disk that can be written. DEADLINE_EXCEEDED when that takes longer than `limit`: it goes on in a
// thread of its own, because it cannot be interrupted.
absl::Status FlushImages(const std::vector<DiskConfig>& disks, absl::Duration limit);

}  // namespace still::session
