// Puts the guest agent into the root of a stopped guest, so that the next boot starts it.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "tools/still/guest_image/guest_root.h"

namespace still::cli {

// The files of a guest: bin/guest in a build, lib/stillpoint/guest when installed.
struct AgentFiles {
  std::string program;
  std::string systemd_unit;
  std::string init_script;
  static absl::StatusOr<AgentFiles> Load();
};

// What starts it: "systemd", "sysvinit" or "busybox". `port`: of the host's vsock, 0: the agent's own default.
// FAILED_PRECONDITION: the guest has an init that is not known here. Doing it again replaces the files.
absl::StatusOr<std::string> InstallAgent(GuestRoot& root, const AgentFiles& files, uint32_t port);

}  // namespace still::cli
