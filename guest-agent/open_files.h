// Who has what open for writing, of all processes: block devices, and files by the file system that they are on.
//
// Nothing is opened and no file system is asked: the links in /proc/PID/fd show the mode of each descriptor, and their
// targets' types are taken from what the kernel remembers (AT_STATX_DONT_SYNC), so that a dead network delays nobody.
// A process that has mapped a file and closed it is not seen.
#pragma once

#include <map>
#include <string>

#include "guest-agent/mount_table.h"

namespace still::agent {

struct OpenForWriting {
  std::map<DeviceId, std::string> devices;       // Block device -> one of the processes: "dd (412)".
  std::map<DeviceId, std::string> file_systems;  // Superblock device of a regular file or directory -> the same.
  std::string incomplete;                        // What was not looked at; or empty.
};

OpenForWriting FindOpenForWriting(const std::string& proc = "/proc");

}  // namespace still::agent
