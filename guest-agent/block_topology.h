// Which superblock lies on which: loop devices over files, partitions and device-mapper targets over devices, as sysfs
// shows them. Only for ordering: what cannot be read is taken as "lies on nothing seen here".
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "guest-agent/mount_table.h"

namespace still::agent {

// `sysfs`: "/sys", or a test's tree.
std::map<DeviceId, std::set<DeviceId>> FindDependencies(const std::string& sysfs,
                                                        const std::vector<MountEntry>& mounts);

}  // namespace still::agent
