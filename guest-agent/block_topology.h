// Which superblock lies on which: loop devices over files, partitions and device-mapper targets over devices, as sysfs
// shows them. Only for ordering: what cannot be read is taken as "lies on nothing seen here".
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "guest-agent/mount_table.h"

namespace still::agent {

struct TopologySources {
  std::string sysfs = "/sys";  // Or a test's tree.
  // The superblock device under a loop device, asked of the kernel itself; nothing when it does not say. It is right
  // also where the name in sysfs is not: a file whose mount was lazily unmounted has only the end of its path left.
  std::function<std::optional<DeviceId>(const DeviceId& loop)> loop_backing = AskLoopDriver;

  static std::optional<DeviceId> AskLoopDriver(const DeviceId& loop);
};

std::map<DeviceId, std::set<DeviceId>> FindDependencies(const std::vector<MountEntry>& mounts,
                                                        const TopologySources& sources = {});

}  // namespace still::agent
