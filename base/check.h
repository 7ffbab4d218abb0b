// CHECK: for our own bugs only. What the world can cause (bad input, a full disk, a dead peer) is an absl::Status.
#pragma once

namespace still {

// Prints "file:line: CHECK failed: what" on stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* what);

}  // namespace still

#define STILL_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::still::CheckFailed(__FILE__, __LINE__, #condition))
