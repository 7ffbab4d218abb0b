// VmConfig: what a hypervisor is told to start. Plain data; whoever fills it has checked nothing yet, the hypervisor's
// Start answers INVALID_ARGUMENT for what it cannot do.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"

namespace still::session {

struct DiskConfig {
  std::string name;  // "vda"; unique, [a-z0-9]{1,32}. Also the image's name in a snapshot.
  std::string path;
  // "raw" or "qcow2"; never probed: a guest that writes a qcow2 header into a raw disk must gain nothing.
  std::string format;
  bool read_only = false;
  std::string serial;
  // What this file (qcow2) does not have yet: an export of an NBD server on a socket in VmConfig::directory. Empty: the
  // file has everything. A read that the server cannot answer holds the guest instead of failing.
  std::string backing_export;
  std::string backing_socket;  // Name in that directory.
};

struct NicConfig {
  std::string name;  // "net0"
  std::string mac;
  // "user": the hypervisor's own NAT. "isolated": the same, but nothing gets out of it or in: what was saved with the
  // one loads with the other, because the NAT has saved state of its own. "none": a card without a network.
  std::string kind;
  bool link_up = true;
};

// What the vsock back end asks of the hypervisor's process; made by VsockHost (session/vsock/vsock_host.h).
struct VsockAttachment {
  uint32_t guest_cid = 0;
  int vhost_fd = -1;               // Inherited under this number. Borrowed until Start returns.
  std::vector<int> inherited_fds;  // More descriptors for the hypervisor's process, on the same terms.
  std::vector<std::pair<std::string, std::string>> environment;  // For the hypervisor's process, e.g. LD_PRELOAD.
  std::vector<std::string> sockets;  // That the hypervisor's process connects to: paths in VmConfig::directory.
};

// Saved memory and devices to start from instead of booting.
struct IncomingState {
  OwnedFd ram;           // memfd or tmpfs file with the content of the main memory block, exactly memory_bytes long.
  OwnedFd device_state;  // The stream without that block's pages, at offset 0 of a regular file.
  // Write to `ram` itself. Else it is mapped privately and stays as it is, for further restores.
  bool share_ram = false;
  // What CaptureOptions::base_memory may call `ram`, where it is mapped privately. Empty: nobody has it.
  std::string memory_point;
  bool generation_id = false;  // The saved machine has a VMGenID device.
};

struct VmConfig {
  std::string name;
  std::string directory;  // For sockets and logs of this VM; exists, mode 0700. A confined hypervisor gets through it.
  std::string sessions;   // Where the directories of all sessions of the host are; empty: there is only this one.
  std::string accelerator;   // "kvm" or "tcg".
  std::string machine_type;  // Versioned; empty: this hypervisor's newest.
  std::string cpu_model;     // Empty: the best for the accelerator.
  uint32_t vcpus = 1;
  uint64_t memory_bytes = 0;  // Multiple of 2 MiB.
  std::string firmware;       // Empty: what suits the boot method.
  // Direct kernel boot; empty: the firmware boots the first disk.
  std::string kernel;
  std::string initrd;
  std::string cmdline;
  std::vector<DiskConfig> disks;
  std::vector<NicConfig> nics;
  std::optional<VsockAttachment> vsock;
  // The hypervisor's end of a port to the guest's QEMU guest agent, inherited under this number, borrowed until Start
  // returns. -1: the machine has none.
  int qga_fd = -1;
  std::string generation_id;              // UUID for VMGenID, where firmware and guest can have it; empty: none.
  std::optional<IncomingState> incoming;  // The VM then starts paused and waits for Resume().
  // Called when the guest has been reset, before anything that happens later is told: it goes on in the same VM, with its
  // disks, its bitmaps and whatever is pinned. From a thread of the hypervisor's, perhaps until after the Vm's end: must
  // not block. May be empty.
  std::function<void()> on_reset;
  pid_t adopt_pid = -1;  // Of hypervisors that are not started but adopted (process/).
};

}  // namespace still::session
