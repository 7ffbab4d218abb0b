// The kernel's back end: /dev/vhost-vsock for the hypervisor, AF_VSOCK sockets for us. CIDs and listening ports are
// shared by everything on this host, so both are chosen free, and connections of other VMs are turned away.
#define VIRTIO_RING_NO_LEGACY  // A part of linux/virtio_ring.h that is not C++.
#include <fcntl.h>
#include <linux/vhost.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
// After sys/socket.h: it needs sockaddr.
#include <linux/vm_sockets.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/log_limiter.h"
#include "base/nonblocking.h"
#include "session/vsock/preload_library.h"
#include "session/vsock/vsock_backends.h"

namespace still::session {
namespace {

constexpr char kDevice[] = "/dev/vhost-vsock";
constexpr uint32_t kLastPrivilegedPort = 1023;  // LAST_RESERVED_PORT of net/vmw_vsock/af_vsock.c.
constexpr int kCidAttempts = 16;                // Of some two thousand million: one is nearly always enough.

absl::StatusOr<OwnedFd> NewSocket(int flags = 0) {
  OwnedFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
  if (fd.valid()) return fd;
  if (errno == EAFNOSUPPORT) return absl::FailedPreconditionError("AF_VSOCK is missing: load the vsock module");
  return ErrnoStatus(errno, "socket AF_VSOCK");
}

absl::StatusOr<OwnedFd> OpenDevice() {
  OwnedFd fd(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (fd.valid()) return fd;
  if (errno == ENOENT || errno == ENODEV || errno == ENXIO) {
    return absl::FailedPreconditionError(absl::StrCat(kDevice, " is missing: load the vhost_vsock module"));
  }
  return ErrnoStatus(errno, absl::StrCat("open ", kDevice));
}

// Claims the CID for the device; it stays claimed for as long as the device is open, by whomever. The hypervisor claims it once more
// on the same device, which the kernel allows (drivers/vhost/vsock.c).
absl::StatusOr<uint32_t> ClaimCid(int device, uint32_t wanted) {
  for (int attempt = 0; attempt < kCidAttempts; ++attempt) {
    uint64_t cid = wanted != 0 ? wanted : RandomGuestCid();
    if (::ioctl(device, VHOST_VSOCK_SET_GUEST_CID, &cid) == 0) return static_cast<uint32_t>(cid);
    if (errno != EADDRINUSE) return ErrnoStatus(errno, absl::StrCat("claim vsock CID ", cid));
    if (wanted != 0) return absl::AlreadyExistsError(absl::StrCat("vsock CID ", cid, " is taken by another VM"));
  }
  return absl::ResourceExhaustedError("no free vsock CID was found");
}

class KernelVsock : public VsockHost {
 public:
  KernelVsock(uint32_t port, uint32_t guest_cid, OwnedFd device, StoppableListener listener)
      : port_(port), guest_cid_(guest_cid), device_(std::move(device)), listener_(std::move(listener)) {}

  uint32_t port() const override { return port_; }
  uint32_t guest_cid() const override { return guest_cid_; }
  absl::string_view backend() const override { return "kernel"; }

  VsockAttachment attachment() const override {
    VsockAttachment attachment;
    attachment.guest_cid = guest_cid_;
    attachment.vhost_fd = device_.get();
    if (UserfaultfdNeedsLibrary()) {
      // Without the library snapshots still work, only with a longer pause.
      absl::StatusOr<std::string> library = FindPreloadLibrary();
      if (library.ok()) attachment.environment.push_back(PreloadVariable(*library));
    }
    return attachment;
  }

  // The device holds the hypervisor's memory and its VM: with a descriptor of ours open, both would outlive it. The CID
  // stays claimed by the hypervisor's.
  void HypervisorStarted() override { device_.Reset(); }

  absl::StatusOr<OwnedFd> Accept(absl::Duration timeout) override {
    absl::Duration deadline = Clock::Real().Monotonic() + timeout;
    for (;;) {
      STILL_ASSIGN_OR_RETURN(StoppableListener::Accepted accepted,
                             listener_.Accept(deadline - Clock::Real().Monotonic()));
      sockaddr_vm peer{};
      std::memcpy(&peer, &accepted.peer, sizeof peer);
      if (peer.svm_cid == guest_cid_ && peer.svm_port <= kLastPrivilegedPort) return std::move(accepted.fd);
      if (peer.svm_cid == guest_cid_) return NotPrivilegedError();
      if (auto left_out = strangers_.Admit(); left_out.has_value()) {
        LogWarning("turned away a vsock connection of another VM",
                   {{"cid", peer.svm_cid}, {"port", port_}, {"left_out", *left_out}});
      }
    }
  }

  absl::StatusOr<OwnedFd> Connect(uint32_t guest_port, absl::Duration timeout) override;

  void Shutdown() override { listener_.Shutdown(); }

 private:
  const uint32_t port_;
  const uint32_t guest_cid_;
  OwnedFd device_;
  StoppableListener listener_;
  LogLimiter strangers_;  // Another VM may dial as often as it likes.
};

absl::StatusOr<OwnedFd> KernelVsock::Connect(uint32_t guest_port, absl::Duration timeout) {
  std::string what = absl::StrCat("guest port ", guest_port);
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, NewSocket(SOCK_NONBLOCK));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = guest_cid_;
  address.svm_port = guest_port;
  // Else the kernel gives up after 2 s, whatever the caller is ready to wait.
  timeval limit = absl::ToTimeval(std::clamp(timeout, absl::Milliseconds(1), absl::Hours(1)));
  if (::setsockopt(fd.get(), AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit) != 0) {
    return ErrnoStatus(errno, "setsockopt SO_VM_SOCKETS_CONNECT_TIMEOUT");
  }
  int error = 0;
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) error = errno;
  if (error == EINPROGRESS) {
    absl::Duration deadline = Clock::Real().Monotonic() + timeout;
    pollfd ready{.fd = fd.get(), .events = POLLOUT, .revents = 0};
    int count;
    do {
      absl::Duration left = std::max(deadline - Clock::Real().Monotonic(), absl::ZeroDuration());
      bool ever = left == absl::InfiniteDuration();
      count = ::poll(&ready, 1, ever ? -1 : static_cast<int>(absl::ToInt64Milliseconds(left) + 1));
    } while (count < 0 && errno == EINTR);
    if (count < 0) return ErrnoStatus(errno, "poll vsock");
    if (count == 0) {
      return absl::DeadlineExceededError(absl::StrCat(what, ": no answer within ", absl::FormatDuration(timeout)));
    }
    socklen_t length = sizeof error;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) != 0) return ErrnoStatus(errno, "getsockopt");
  }
  if (error == ETIMEDOUT) return absl::DeadlineExceededError(absl::StrCat(what, ": no answer in time"));
  if (error == ECONNREFUSED || error == ECONNRESET || error == ENODEV || error == EHOSTUNREACH) {
    return absl::UnavailableError(absl::StrCat(what, ": nothing in the guest accepts"));
  }
  if (error != 0) return ErrnoStatus(error, absl::StrCat("connect to ", what));
  STILL_RETURN_IF_ERROR(SetNonBlocking(fd.get(), false));
  return fd;
}

}  // namespace

absl::Status FindKernelVsock() {
  STILL_RETURN_IF_ERROR(OpenDevice().status());
  return NewSocket().status();
}

absl::StatusOr<std::unique_ptr<VsockHost>> CreateKernelVsock(const VsockOptions& options) {
  STILL_ASSIGN_OR_RETURN(OwnedFd device, OpenDevice());
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, NewSocket());
  STILL_ASSIGN_OR_RETURN(uint32_t guest_cid, ClaimCid(device.get(), options.guest_cid));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = options.port != 0 ? options.port : VMADDR_PORT_ANY;
  socklen_t length = sizeof address;
  if (::bind(listening.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat("vsock port ", options.port, " is in use on this host"));
    }
    return ErrnoStatus(errno, absl::StrCat("bind vsock port ", options.port));
  }
  if (::listen(listening.get(), kVsockBacklog) != 0) return ErrnoStatus(errno, "listen on vsock");
  if (::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return ErrnoStatus(errno, "getsockname of vsock");
  }
  std::vector<OwnedFd> sockets;
  sockets.push_back(std::move(listening));
  STILL_ASSIGN_OR_RETURN(StoppableListener listener,
                         StoppableListener::Create(std::move(sockets), absl::StrCat("vsock port ", address.svm_port)));
  return std::make_unique<KernelVsock>(address.svm_port, guest_cid, std::move(device), std::move(listener));
}

}  // namespace still::session
