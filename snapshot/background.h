// Work that must not take processor time from a guest: hashing, compressing, encrypting, reading disks.
#pragma once

#include <functional>

#include "base/status.h"

namespace still::snapshot {

// Makes the calling thread, and every thread that it starts from now on, yield to others. For good: taking it back
// would need a privilege.
void EnterBackground();

// Runs `work` in a thread of its own, in the background, and waits for it.
absl::Status InBackground(const std::function<absl::Status()>& work);

}  // namespace still::snapshot
