// The user-space back end: the device runs inside the hypervisor, in the preloaded libstill-vsock.so (device/), and is
// reached over UNIX sockets in the VM's directory. All that it needs is made here and handed over as descriptors.
#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/nonblocking.h"
#include "base/unix_socket.h"
#include "session/vsock/preload_library.h"
#include "session/vsock/vsock_backends.h"

namespace still::session {
namespace {

constexpr uint32_t kDefaultPort = 1024;  // Every VM has its own ports: see unix_bridge.h for the names of the sockets.

// The agent's listening sockets, in this order: the device tells by the socket's name from what port the guest dials.
enum AgentListener : size_t { kPrivileged, kOthers };

std::string AgentPath(const std::string& directory, uint32_t port) {
  return JoinPath(directory, absl::StrCat("vsock.sock_", port));
}
std::string PrivilegedPath(const std::string& agent_path) { return absl::StrCat(agent_path, "_privileged"); }

class UserspaceVsock : public VsockHost {
 public:
  UserspaceVsock(std::string directory, uint32_t port, uint32_t guest_cid, std::string library,
                 StoppableListener agent_listener, OwnedFd vhost_fd, OwnedFd host_listener, OwnedFd directory_fd)
      : directory_(std::move(directory)),
        port_(port),
        guest_cid_(guest_cid),
        library_(std::move(library)),
        agent_listener_(std::move(agent_listener)),
        vhost_fd_(std::move(vhost_fd)),
        host_listener_(std::move(host_listener)),
        directory_fd_(std::move(directory_fd)) {}

  uint32_t port() const override { return port_; }
  uint32_t guest_cid() const override { return guest_cid_; }
  absl::string_view backend() const override { return "userspace"; }

  VsockAttachment attachment() const override {
    VsockAttachment attachment;
    attachment.guest_cid = guest_cid_;
    attachment.vhost_fd = vhost_fd_.get();
    attachment.inherited_fds = {host_listener_.get(), directory_fd_.get()};
    attachment.environment = {
        PreloadVariable(library_),
        {"STILL_VSOCK_FDS", absl::StrCat(vhost_fd_.get(), ",", host_listener_.get(), ",", directory_fd_.get())}};
    const std::string agent_path = AgentPath(directory_, port_);
    attachment.sockets = {agent_path, PrivilegedPath(agent_path)};
    return attachment;
  }

  absl::StatusOr<OwnedFd> Accept(absl::Duration timeout) override {
    STILL_ASSIGN_OR_RETURN(StoppableListener::Accepted accepted, agent_listener_.Accept(timeout));
    if (accepted.listener != kPrivileged) return NotPrivilegedError();
    return std::move(accepted.fd);
  }

  absl::StatusOr<OwnedFd> Connect(uint32_t guest_port, absl::Duration timeout) override;

  void Shutdown() override { agent_listener_.Shutdown(); }

 private:
  const std::string directory_;
  const uint32_t port_;
  const uint32_t guest_cid_;
  const std::string library_;
  StoppableListener agent_listener_;
  OwnedFd vhost_fd_;
  OwnedFd host_listener_;
  OwnedFd directory_fd_;
};

absl::StatusOr<OwnedFd> UserspaceVsock::Connect(uint32_t guest_port, absl::Duration timeout) {
  absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  std::string what = absl::StrCat("guest port ", guest_port);
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, ConnectUnix(JoinPath(directory_, "vsock.sock")));
  std::string request = absl::StrCat("CONNECT ", guest_port, "\n");
  ssize_t sent = ::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL);
  if (sent != static_cast<ssize_t>(request.size())) {
    return absl::UnavailableError(absl::StrCat(what, ": the vsock device does not answer"));
  }
  // Byte by byte: what follows the line is the guest's and stays in the socket.
  std::string answer;
  constexpr size_t kMaxAnswer = 32;
  while (answer.size() < kMaxAnswer && !absl::EndsWith(answer, "\n")) {
    STILL_RETURN_IF_ERROR(WaitReadable(fd.get(), deadline - Clock::Real().Monotonic(), what));
    char byte;
    ssize_t got = ::recv(fd.get(), &byte, 1, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return absl::UnavailableError(absl::StrCat(what, ": nothing in the guest accepts"));
    answer.push_back(byte);
  }
  if (!absl::StartsWith(answer, "OK ")) return absl::InternalError(absl::StrCat(what, ": unexpected answer"));
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<VsockHost>> CreateUserspaceVsock(const VsockOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::string library, FindPreloadLibrary());
  uint32_t port = options.port != 0 ? options.port : kDefaultPort;
  uint32_t guest_cid = options.guest_cid != 0 ? options.guest_cid : RandomGuestCid();
  STILL_ASSIGN_OR_RETURN(OwnedFd directory_fd, OpenFile(options.directory, O_PATH | O_DIRECTORY));
  STILL_ASSIGN_OR_RETURN(OwnedFd vhost_fd, OpenFile("/dev/null", O_RDWR));
  STILL_ASSIGN_OR_RETURN(OwnedFd host_listener, ListenUnix(JoinPath(options.directory, "vsock.sock"), kVsockBacklog));
  // The device's thread accepts until there is nothing left; it must not block then.
  STILL_RETURN_IF_ERROR(SetNonBlocking(host_listener.get()));
  const std::string agent_path = AgentPath(options.directory, port);
  std::vector<OwnedFd> agent_fds(2);
  STILL_ASSIGN_OR_RETURN(agent_fds[kPrivileged], ListenUnix(PrivilegedPath(agent_path), kVsockBacklog));
  STILL_ASSIGN_OR_RETURN(agent_fds[kOthers], ListenUnix(agent_path, kVsockBacklog));
  STILL_ASSIGN_OR_RETURN(StoppableListener agent_listener,
                         StoppableListener::Create(std::move(agent_fds), absl::StrCat("vsock port ", port)));
  return std::make_unique<UserspaceVsock>(options.directory, port, guest_cid, std::move(library),
                                          std::move(agent_listener), std::move(vhost_fd), std::move(host_listener),
                                          std::move(directory_fd));
}

}  // namespace still::session
