// Export as a chain of qcow2 files that mirrors the snapshots: the oldest whole, each later one only what changed, over
// the one before it. Any tool that knows qcow2 reads every point.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

struct ExportChainOptions {
  std::string snapshot;  // The newest; any reference.
  std::string image;     // Empty: the only disk.
  std::string path;      // Of the directory; must not exist.
  size_t max_length = 1000;
  ProgressSink progress = [](const Progress&) {};
  // Asked now and then, by several threads: false ends it with CANCELLED, and nothing is left of it.
  std::function<bool()> go_on = [] { return true; };
};
// The files' names in the directory, oldest first. Written whole and synced, or nothing. A chain begins where a snapshot
// has no parent any more, or one without that image or of another size.
absl::StatusOr<std::vector<std::string>> ExportChain(store::Repository& repository, const ExportChainOptions& options);

}  // namespace still::snapshot
