#include "guest-agent/connection.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
// After sys/socket.h, whose types it needs.
#include <linux/vm_sockets.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/base/call_once.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/unix_socket.h"

namespace still::agent {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(10);
constexpr absl::Duration kLongestPause = absl::Seconds(1);
// The kernel lets only CAP_NET_BIND_SERVICE have such a port (net/vmw_vsock/af_vsock.c, LAST_RESERVED_PORT), so it proves
// to the host that a privileged program dials. Port 0 is left out: it is easily taken for "any".
constexpr uint32_t kLastPrivilegedPort = 1023;
// A port may still belong to a connection that is being closed, or to a service of the guest.
constexpr uint64_t kPortAttempts = 32;

// Without the privilege the kernel chooses the port and the host turns the connection away: it is the host that can tell
// an operator.
absl::Status BindPrivileged(int fd) {
  // The clock, because the kernel's random numbers may not be ready when a guest boots.
  auto first = static_cast<uint64_t>(absl::ToInt64Nanoseconds(Clock::Real().Monotonic()));
  for (uint64_t attempt = 0; attempt < kPortAttempts; ++attempt) {
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_ANY;
    address.svm_port = 1 + static_cast<uint32_t>((first + attempt) % kLastPrivilegedPort);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return absl::OkStatus();
    if (errno == EACCES) {
      static absl::once_flag once;
      absl::call_once(once, [] { LogWarning("the host will turn us away: still-agent needs CAP_NET_BIND_SERVICE"); });
      return absl::OkStatus();
    }
    if (errno != EADDRINUSE) break;
  }
  return ErrnoStatus(errno, "bind a privileged vsock port");
}

absl::StatusOr<OwnedFd> DialVsock(const Endpoint& endpoint) {
  OwnedFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "vsock socket");
  // Half of the default: a request that was lost with a restored guest's transport must not hold up the next one.
  timeval limit{.tv_sec = 1, .tv_usec = 0};
  (void)::setsockopt(fd.get(), AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &limit, sizeof limit);
  STILL_RETURN_IF_ERROR(BindPrivileged(fd.get()));
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = endpoint.cid;
  address.svm_port = endpoint.port;
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, absl::StrCat("connect ", endpoint.ToString()));
  }
  return fd;
}

}  // namespace

absl::StatusOr<Endpoint> Endpoint::Parse(absl::string_view text) {
  Endpoint endpoint;
  if (absl::ConsumePrefix(&text, "unix:")) {
    if (text.empty()) return absl::InvalidArgumentError("address unix: has no path");
    endpoint.kind = Kind::kUnix;
    endpoint.path = std::string(text);
    return endpoint;
  }
  absl::string_view rest = text;
  if (!absl::ConsumePrefix(&rest, "vsock:")) {
    return absl::InvalidArgumentError(absl::StrCat("address ", text, ": neither vsock:PORT nor unix:PATH"));
  }
  std::vector<absl::string_view> parts = absl::StrSplit(rest, ':');
  bool good = parts.size() <= 2 && absl::SimpleAtoi(parts.back(), &endpoint.port) &&
              (parts.size() == 1 || absl::SimpleAtoi(parts.front(), &endpoint.cid));
  if (!good) return absl::InvalidArgumentError(absl::StrCat("address ", text, ": not vsock:[CID:]PORT"));
  return endpoint;
}

std::string Endpoint::ToString() const {
  return kind == Kind::kUnix ? absl::StrCat("unix:", path) : absl::StrCat("vsock:", cid, ":", port);
}

absl::StatusOr<OwnedFd> Dial(const Endpoint& endpoint) {
  absl::StatusOr<OwnedFd> fd =
      endpoint.kind == Endpoint::Kind::kUnix ? ConnectUnix(endpoint.path) : DialVsock(endpoint);
  if (fd.ok() && ::fcntl(fd->get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "set non-blocking");
  return fd;
}

bool WaitForConnectionEnd(int duplicate, int stop_fd) {
  pollfd fds[2] = {{.fd = duplicate, .events = POLLRDHUP, .revents = 0},
                   {.fd = stop_fd, .events = POLLIN, .revents = 0}};
  while (::poll(fds, 2, -1) < 0 && errno == EINTR) {
  }
  return fds[1].revents == 0;
}

absl::Duration Backoff::Next() {
  absl::Duration pause = next_;
  next_ = pause == absl::ZeroDuration() ? kFirstPause : std::min(pause * 2, kLongestPause);
  return pause;
}

}  // namespace still::agent
