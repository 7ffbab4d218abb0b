// VsockHost: the host's end of a VM's vsock device, over the kernel's /dev/vhost-vsock where that exists, else over the
// user-space device that is preloaded into the hypervisor (docs/vsock.md).
//
//   VsockHost::Create   binds the listener for the port that the guest agent dials, before the VM starts
//   attachment()        goes into VmConfig::vsock
//   Accept()            gives the guest's connections, one after the other, as stream sockets
//
// A connection is a plain byte stream. After a restore every older connection is dead, on both sides: expect the guest
// to dial again, never reuse.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

// kAutomatic: the kernel's where it is there and a port or CID that was asked for is free on this host; else user
// space.
enum class VsockBackend { kAutomatic, kKernel, kUserspace };

struct VsockOptions {
  std::string directory;  // Where the user-space back end makes its sockets.
  // Host port on which the guest's agent is expected. 0: chosen here (with the kernel's back end ports are host-wide;
  // the user-space one always has its own space and takes 1024).
  uint32_t port = 0;
  // 0: chosen here, random, free on this host. A restored VM must get another one than it was saved with.
  uint32_t guest_cid = 0;
  VsockBackend backend = VsockBackend::kAutomatic;
};

// OK when Create would find that back end on this host; else its FAILED_PRECONDITION or PERMISSION_DENIED. Makes nothing.
absl::Status FindVsock(VsockBackend backend);

class VsockHost {
 public:
  // FAILED_PRECONDITION names what is missing when the back end that was asked for is not there; ALREADY_EXISTS: the
  // port or the CID that was asked for is taken on this host (when the kernel's back end was asked for).
  // The user-space back end looks for libstill-vsock.so beside the running program and in ../lib/stillpoint;
  // STILL_VSOCK_LIBRARY overrides both.
  static absl::StatusOr<std::unique_ptr<VsockHost>> Create(const VsockOptions& options);
  virtual ~VsockHost() = default;

  virtual uint32_t port() const = 0;
  virtual uint32_t guest_cid() const = 0;
  virtual absl::string_view backend() const = 0;  // "kernel" or "userspace"
  virtual VsockAttachment attachment() const = 0;
  // Once the hypervisor has its attachment: what was only held for it is closed. No attachment() afterwards.
  virtual void HypervisorStarted() {}

  // The next connection that a privileged program of the guest made to port(): it dials from a port below 1024, which
  // the guest's kernel gives to CAP_NET_BIND_SERVICE only. DEADLINE_EXCEEDED, or CANCELLED after Shutdown().
  // PERMISSION_DENIED, with what to do about it: another program of the guest dialled; its connection is closed. Those of
  // other VMs (possible with the kernel's host-wide ports) are closed and never told of.
  virtual absl::StatusOr<OwnedFd> Accept(absl::Duration timeout) = 0;
  // A connection to a port on which something in the guest listens. UNAVAILABLE when nothing does.
  virtual absl::StatusOr<OwnedFd> Connect(uint32_t guest_port, absl::Duration timeout) = 0;
  // Unblocks Accept for good. Thread-safe, idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace still::session
