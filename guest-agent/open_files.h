// Who can write to what, of all processes: block devices, and files by the file system that they are on.
//
// Nothing is opened and no file system is asked: /proc/PID/fd and /proc/PID/maps show what each descriptor and mapping is
// good for, and the types of their targets are taken from what the kernel remembers (AT_STATX_DONT_SYNC), so that a dead
// network delays nobody. Not seen: a descriptor that is on its way between two processes, and processes that a security
// module keeps from us.
#pragma once

#include <map>
#include <string>

#include "absl/time/time.h"
#include "guest-agent/mount_table.h"

namespace still::agent {

struct OpenForWriting {
  std::map<DeviceId, std::string> devices;       // Block device -> one of the processes: "dd (412)".
  std::map<DeviceId, std::string> file_systems;  // Superblock device of a regular file or directory -> the same.
  std::string incomplete;                        // What was not looked at; or empty.

  void Add(OpenForWriting other);
};

// By a descriptor. Never waits, also while file systems are frozen.
OpenForWriting FindOpenForWriting(const std::string& proc = "/proc");

// By a shared mapping, whose descriptor may have been closed. Not for a time when file systems are frozen: the table of
// mappings cannot be read while a thread of the process waits for the thaw in a page fault and another for the table.
// Ends after `limit`, whatever hangs.
OpenForWriting FindMappedForWriting(const std::string& proc = "/proc", absl::Duration limit = absl::Seconds(5));

}  // namespace still::agent
