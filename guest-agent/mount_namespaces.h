// The mount tables of the other mount namespaces, as far as a process lives in them: what a service with a namespace of
// its own has mounted (PrivateMounts, a container, unshare -m) is in no other table.
//
// Nothing enters a namespace: the kernel shows each process's table in /proc/PID/mountinfo, and a path below
// /proc/PID/root is resolved in that process's mounts.
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"
#include "guest-agent/mount_table.h"

namespace still::agent {

struct OtherMounts {
  // The root of the process that was asked (O_PATH): paths below it reach these mounts also when the process has ended.
  OwnedFd root;
  std::vector<MountEntry> mounts;
};

struct OtherMountTables {
  std::vector<OtherMounts> tables;  // One for each namespace, and for each root that a process has in it.
  std::string incomplete;           // What was not looked at, and why; or empty.
};

// The processes below `proc`. A process that ends meanwhile is passed over: the next one of its namespace is asked.
OtherMountTables ReadOtherMountTables(const std::string& proc = "/proc");

// "mariadbd (412)": the name that a process has given itself, made printable, and its id.
std::string DescribeProcess(const std::string& proc, const std::string& pid);

// The kernel's default limit; what is more is not looked at.
inline constexpr size_t kMaxProcesses = 32768;

// The processes below `proc`, as the names of their directories. At most kMaxProcesses.
std::vector<std::string> ListProcesses(const std::string& proc, bool& truncated);

}  // namespace still::agent
