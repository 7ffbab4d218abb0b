// The files of a session that is restored: its disks, its kernel, its device state, read from the repository into its
// directory.
#pragma once

#include <set>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

// Nullptr: the snapshot has no image of that role.
const manifestpb::Image* FindImage(const manifestpb::Snapshot& snapshot, manifestpb::Image::Role role);

struct SessionFileOptions {
  std::string directory;   // Where they are written.
  std::string boot_files;  // Directory of BootFiles, on the same file system.
  std::string used_as;     // What the directory will be called when the session starts; the configuration names that.
  // Names of disks that somebody else writes: entered without a file.
  std::set<std::string> without_disks;
  // Overlays over what a disk server serves, instead of copies, of the disks that can be (lazy_disk.h).
  bool lazy_disks = false;
  bool device_state = false;
  ProgressSink progress = [](const Progress&) {};
};

// Writes the files and enters them into `config`, whose machine says which disks there are; the disks of an import, which
// has no machine, are entered there too. DATA_LOSS: an image is missing or damaged.
absl::Status WriteSessionFiles(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                               const SessionFileOptions& options, sessionpb::SessionConfig& config);

// One image into `fd`, which is empty or zero.
absl::Status WriteImage(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                        const manifestpb::Image& image, int fd, const ProgressSink& progress);

}  // namespace still::snapshot
