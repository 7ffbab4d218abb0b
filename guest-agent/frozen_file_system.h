// One file system in our hands: opened before the freeze, frozen, and thawed through the same descriptor.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "guest-agent/freeze_plan.h"
#include "guest-agent/freezer.h"
#include "proto/guest.pb.h"

namespace still::agent {

struct FrozenFileSystem {
  // Shared with a write-back that hangs and was left behind.
  std::shared_ptr<FileSystemHandle> handle;
  DeviceId device;                   // The superblock's.
  PlannedFileSystem::Mount reached;  // The mount it was opened through.
  pb::FrozenMount mount;             // What is reported about it.
};

// Opens each planned file system through the first of its mounts that can be reached. What is skipped by the plan,
// cannot be reached, or is a further mount of the same file system is reported in `response`.
std::vector<FrozenFileSystem> OpenPlanned(Freezer& freezer, const FreezePlan& plan, pb::QuiesceResponse& response);

struct ThawOutcome {
  int thaws = 0;  // 0: it was not frozen any more.
  int error = 0;  // 0: nothing of the freeze is left. Else errno: it may still be frozen.
};
// FITHAW until the kernel says that nothing is frozen: a device-mapper freeze may hold at the same time, and then one
// thaw does not let writers go on.
ThawOutcome ThawCompletely(FileSystemHandle& handle);

}  // namespace still::agent
