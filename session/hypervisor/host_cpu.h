// What the host's processor can do: a guest that was given it (KVM) can only go on where all of it is there.
#pragma once

#include <string>
#include <vector>

namespace still::session {

// The "flags" of /proc/cpuinfo under `root` ("/" outside tests), sorted. Empty when they cannot be read.
std::vector<std::string> HostCpuFeatures(const std::string& root = "/");

}  // namespace still::session
