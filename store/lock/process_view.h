// ProcessView: who we are and who still runs, as far as leases need to know (docs/format/locks.md). A seam: tests have
// hosts, boots and processes of their own.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace still::store {

// A process, unmistakably: numbers are used again, but not with the same start time in the same boot.
struct ProcessIdentity {
  std::string host;  // Machine id, ':', host name.
  std::string boot;  // The kernel's boot id.
  uint64_t pid_namespace = 0;
  int64_t pid = 0;
  uint64_t start_ticks = 0;  // Clock ticks after boot.
  bool operator==(const ProcessIdentity&) const = default;
};

class ProcessView {
 public:
  virtual ~ProcessView() = default;
  virtual const ProcessIdentity& self() const = 0;
  // Of a process in our boot and PID namespace. True when in doubt. Thread-safe.
  virtual bool IsRunning(int64_t pid, uint64_t start_ticks) const = 0;

  // This process, read from /proc once. Never destroyed.
  static absl::StatusOr<const ProcessView*> Real();
};

}  // namespace still::store
