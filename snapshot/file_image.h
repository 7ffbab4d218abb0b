// Disk images as files: into the repository (`still import`) and out of it (`still export`).
#pragma once

#include <functional>
#include <map>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

// Stores a file or block device as it is, as one image of a snapshot under way. `options.size` is taken from it.
absl::Status StoreFile(store::SnapshotWriter& writer, const std::string& path, store::ImageOptions options);

inline constexpr char kStandardInput[] = "-";

struct ImportOptions {
  // A file, a block device, a pipe, or kStandardInput.
  std::string path;
  std::string format = "raw";  // "raw" or "qcow2"; never probed.
  std::string name;            // Of the snapshot; empty: none.
  std::string session;         // Under which it is listed; empty: as the file is called (base/names.h, EscapeName).
  std::map<std::string, std::string> labels;
  ProgressSink progress = [](const Progress&) {};
};
// A disk-only snapshot, crash-consistent, with one image "vda". The file must not change meanwhile. INVALID_ARGUMENT for a
// name that no reference reaches, and for what no machine could have as a disk: nothing, or no whole sectors.
absl::StatusOr<manifestpb::Snapshot> ImportFile(store::Repository& repository, const ImportOptions& options);

struct ExportOptions {
  std::string snapshot;  // Any reference.
  std::string image;     // Empty: the only disk.
  std::string path;      // Must not exist.
  std::string format = "raw";
  ProgressSink progress = [](const Progress&) {};
  // Asked now and then, by several threads: false ends it with CANCELLED, and nothing is left of it.
  std::function<bool()> go_on = [] { return true; };
};
// Writes `path`, sparse, complete and synced, or nothing.
absl::Status ExportImage(store::Repository& repository, const ExportOptions& options);

}  // namespace still::snapshot
