// Which superblock lies on which: loop devices over files, partitions and device-mapper targets over devices, as sysfs
// shows them. For ordering: what cannot be read is taken as "lies on nothing seen here".
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "guest-agent/mount_table.h"

namespace still::agent {

struct TopologySources {
  std::string sysfs = "/sys";  // Or a test's tree.
  // The superblock device under a loop device, asked of the kernel itself; nothing when it does not say. It is right
  // also where the name in sysfs is not: a file whose mount was lazily unmounted has only the end of its path left.
  // DEADLINE_EXCEEDED: it asked the file's own file system, and that does not answer.
  std::function<absl::StatusOr<DeviceId>(const DeviceId& loop)> loop_backing = AskLoopDriver;

  static absl::StatusOr<DeviceId> AskLoopDriver(const DeviceId& loop);
};

struct BlockTopology {
  std::map<DeviceId, std::set<DeviceId>> lies_on;  // As in MountSurvey.
  std::map<DeviceId, std::string> unanswering;
};
BlockTopology FindDependencies(const std::vector<MountEntry>& mounts, const TopologySources& sources = {});

// The block devices under a superblock: its own, or its source's, and with btrfs all of its others.
std::set<DeviceId> MemberDevices(const MountEntry& mount, const std::string& sysfs = "/sys");

// A block device's number, from its "dev" attribute.
bool ReadDeviceNumber(const std::string& path, DeviceId& device);

}  // namespace still::agent
