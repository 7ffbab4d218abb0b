// The real Freezer: FIFREEZE and FITHAW on this machine.
#pragma once

#include <memory>
#include <string>

#include "guest-agent/freezer.h"
#include "guest-agent/mount_namespaces.h"

namespace still::agent {

class KernelFreezer : public Freezer {
 public:
  absl::StatusOr<MountSurvey> Survey() override;
  absl::StatusOr<std::unique_ptr<FileSystemHandle>> Open(int mount_id, const std::string& path) override;
  void PinMemory() override;
};

// Adds to our own table what other namespaces have mounted besides: each superblock on a disk that it does not have yet.
void AddOtherNamespaces(OtherMountTables other, MountSurvey& survey);

// The mount that an open descriptor lies on, by its id in the mount table. Needs no particular kernel version.
absl::StatusOr<int> MountIdOf(int fd);

}  // namespace still::agent
