// DiskSwap: other content for a session's disk files that lie outside its directory, all of them or none. Files are
// written beside the old ones and renamed; until Discard() the old ones are still there.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

// rename(2).
absl::Status Rename(const std::string& from, const std::string& to);

class DiskSwap {
 public:
  // The tag is part of what is written beside each file; each swap has another one.
  explicit DiskSwap(std::string tag) : tag_(std::move(tag)) {}
  DiskSwap(const DiskSwap&) = delete;
  DiskSwap& operator=(const DiskSwap&) = delete;
  // Puts back what was swapped and not discarded, and removes what was staged.
  ~DiskSwap();

  // Beside `path`: its new content until the swap, and its old content after it.
  static std::string StagedName(const std::string& path, const std::string& tag);
  static std::string BeforeName(const std::string& path, const std::string& tag);
  // What a symbolic link names is replaced, not the link.
  static absl::StatusOr<std::string> RealPath(const sessionpb::DiskFile& disk);

  // FAILED_PRECONDITION unless the file is a regular one.
  static absl::Status Check(const sessionpb::DiskFile& disk);
  // Writes the snapshot's image of the disk beside its file, in the same format, with the same owner and mode. Read-only
  // disks too: what the snapshot saw is what the guest must find.
  absl::Status Stage(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                     const sessionpb::DiskFile& disk, const ProgressSink& progress);
  // Each staged file takes its place. On an error none has.
  absl::Status Swap();
  // Each old file takes its place again. Nothing else can be done when a rename fails: the message names both files.
  absl::Status SwapBack();
  // The old files are not needed any more.
  absl::Status Discard();

 private:
  struct Staged {
    std::string path;
    std::string staged;
    std::string before;
    bool swapped = false;
  };
  const std::string tag_;
  std::vector<Staged> files_;
};

}  // namespace still::snapshot
