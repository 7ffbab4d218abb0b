// FreezeMarker: a small file, on a file system that never freezes (tmpfs), that exists from before the first FIFREEZE
// until after the last FITHAW. An agent that finds it at its start knows that its predecessor died while the guest was
// frozen, and which mounts it has to thaw.
//
// Lines: "still-freeze 1 <token, C-escaped>", then for each mount "<mount id> <mount point, C-escaped>".
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "guest-agent/freeze_plan.h"

namespace still::agent {

struct MarkedFreeze {
  std::string token;
  std::vector<PlannedFileSystem::Mount> mounts;  // In freezing order.
};

class FreezeMarker {
 public:
  explicit FreezeMarker(std::string path) : path_(std::move(path)) {}

  // Makes its directory. FAILED_PRECONDITION when the marker would lie on one of the file systems to be frozen: then
  // neither it nor its removal could be written.
  absl::Status CheckOutside(const MountSurvey& survey, const FreezePlan& plan) const;
  // Replaces what it said before, in one step.
  absl::Status Write(const MarkedFreeze& freeze) const;
  absl::Status Remove() const;
  bool Exists() const;
  // DATA_LOSS when it is damaged: then anything may be frozen.
  absl::StatusOr<MarkedFreeze> Read() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace still::agent
