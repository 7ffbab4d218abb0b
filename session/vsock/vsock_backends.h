// The two back ends behind VsockHost::Create, and what they share. Private to this folder.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "base/waker.h"
#include "session/vsock/vsock_host.h"

namespace still::session {

// FAILED_PRECONDITION when this host lacks /dev/vhost-vsock or AF_VSOCK, PERMISSION_DENIED when we may not use them.
absl::Status FindKernelVsock();
// The same errors.
absl::StatusOr<std::unique_ptr<VsockHost>> CreateKernelVsock(const VsockOptions& options);
// FAILED_PRECONDITION when libstill-vsock.so is not found.
absl::StatusOr<std::unique_ptr<VsockHost>> CreateUserspaceVsock(const VsockOptions& options);

// Connections that wait to be accepted.
inline constexpr int kVsockBacklog = 128;

// What Accept says of a program in the guest that may not be its agent.
absl::Status NotPrivilegedError();

// Random, and out of the way of the small numbers that people choose by hand.
uint32_t RandomGuestCid();

// Listening sockets whose waiting can be ended by another thread.
class StoppableListener {
 public:
  static absl::StatusOr<StoppableListener> Create(std::vector<OwnedFd> listening, std::string name);

  struct Accepted {
    OwnedFd fd;           // Close-on-exec.
    size_t listener = 0;  // Which of the listening sockets it came to.
    sockaddr_storage peer = {};
  };
  absl::StatusOr<Accepted> Accept(absl::Duration timeout);
  // Thread-safe, idempotent.
  void Shutdown();

 private:
  StoppableListener(std::vector<OwnedFd> listening, Waker stop, std::string name);

  std::vector<OwnedFd> listening_;
  Waker stop_;  // Never cleared.
  std::string name_;
};

}  // namespace still::session
