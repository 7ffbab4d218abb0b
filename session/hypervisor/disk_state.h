// Part of the hypervisor edge (hypervisor.h): what a VM's disks lack, and what they do to it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace still::session {

struct LazyDiskState {
  std::string name;
  uint64_t size = 0;      // Bytes.
  uint64_t hydrated = 0;  // Bytes that the running hydration has passed.
  bool hydrating = false;
  bool complete = false;  // The server is not needed any more.
};

// The disks of a VM that lack something which a server still has. Thread-safe.
class LazyDisks {
 public:
  virtual ~LazyDisks() = default;
  virtual absl::StatusOr<std::vector<LazyDiskState>> Query() = 0;
  // Begins to copy what they lack, or sets the rate of what runs; 0: as fast as it goes. No-op for complete ones. A
  // server that fails ends it; then it can be begun again.
  virtual absl::Status Hydrate(uint64_t bytes_per_second) = 0;
};

// Why a VM stands still that should run.
struct Standstill {
  enum class Kind {
    kPaused,  // Somebody has paused it and did not, or could not, resume it.
    kHeld,    // The hypervisor has stopped it because a disk could not be read or written. Resume() has it tried again.
  };
  Kind kind = Kind::kPaused;
  std::string disk;    // kHeld: its name, if known.
  bool write = false;  // kHeld: else a read.
  std::string reason;  // In the hypervisor's words.
};

}  // namespace still::session
