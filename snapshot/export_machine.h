// Export as a directory that plain QEMU starts without Stillpoint: disks, memory, device state, kernel, and a script
// with the exact command line.
#pragma once

#include <functional>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

struct ExportMachineOptions {
  std::string snapshot;  // Any reference.
  std::string path;      // Of the directory; must not exist.
  ProgressSink progress = [](const Progress&) {};
  // Asked now and then, by several threads: false ends it with CANCELLED, and nothing is left of it.
  std::function<bool()> go_on = [] { return true; };
};
// Writes the directory, complete and synced, or nothing. FAILED_PRECONDITION for an import, which no machine is known of.
absl::Status ExportMachine(store::Repository& repository, const ExportMachineOptions& options);

// The script `run`.
absl::StatusOr<std::string> MachineScript(const manifestpb::Snapshot& snapshot);

// Device state whose machine runs as soon as it is loaded: a capture saves it paused, and plain QEMU would stay so.
// DATA_LOSS when it does not look like device state of QEMU.
absl::StatusOr<std::string> RunningDeviceState(std::string device_state);

}  // namespace still::snapshot
