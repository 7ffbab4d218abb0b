#include "base/unix_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/waker.h"

namespace still {
namespace {

// The address of `path`; keeps the directory open while it is reached through /proc.
struct UnixAddress {
  sockaddr_un address{};
  socklen_t length = 0;
  OwnedFd directory;
};

absl::StatusOr<UnixAddress> AddressOf(const std::string& path) {
  UnixAddress result;
  result.address.sun_family = AF_UNIX;
  std::string name = path;
  if (name.size() >= sizeof result.address.sun_path) {
    std::filesystem::path whole(path);
    STILL_ASSIGN_OR_RETURN(result.directory, OpenFile(whole.parent_path().string(), O_PATH | O_DIRECTORY));
    name = absl::StrCat("/proc/self/fd/", result.directory.get(), "/", whole.filename().string());
  }
  if (name.empty() || name.size() >= sizeof result.address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket ", path, ": the name is empty or too long for a UNIX socket"));
  }
  std::memcpy(result.address.sun_path, name.data(), name.size());
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + 1);
  return result;
}

absl::StatusOr<OwnedFd> NewSocket() {
  OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  return fd;
}

}  // namespace

absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, int backlog) {
  STILL_ASSIGN_OR_RETURN(UnixAddress at, AddressOf(path));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, NewSocket());
  STILL_RETURN_IF_ERROR(RemoveFile(path));
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at.address), at.length) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind ", path));
  }
  if (::chmod(path.c_str(), 0600) != 0) return ErrnoStatus(errno, absl::StrCat("chmod ", path));
  if (::listen(fd.get(), backlog) != 0) return ErrnoStatus(errno, absl::StrCat("listen ", path));
  return fd;
}

absl::StatusOr<OwnedFd> ConnectUnix(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(UnixAddress at, AddressOf(path));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, NewSocket());
  // A listener that accepts nobody, with a full queue, would hold us for ever (unix(7): SO_SNDTIMEO is connect's limit too).
  const timeval limit{.tv_sec = 1, .tv_usec = 0};
  const timeval none{};
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
    return ErrnoStatus(errno, "SO_SNDTIMEO");
  int result;
  do {
    result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&at.address), at.length);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == EAGAIN)
    return absl::DeadlineExceededError(absl::StrCat(path, ": its owner does not accept"));
  if (result != 0) return ErrnoStatus(errno, absl::StrCat("connect ", path));
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none) != 0)
    return ErrnoStatus(errno, "SO_SNDTIMEO");
  return fd;
}

bool IsListening(const std::string& path) {
  absl::StatusOr<UnixAddress> at = AddressOf(path);
  if (!at.ok()) return false;
  OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return false;
  int result;
  do {
    result = ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&at->address), at->length);
  } while (result != 0 && errno == EINTR);
  return result == 0 || errno == EAGAIN;  // EAGAIN: its queue is full (unix(7)).
}

absl::Status WaitReadable(int fd, absl::Duration timeout, absl::string_view what) {
  absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  for (;;) {
    absl::Duration left = deadline - Clock::Real().Monotonic();
    pollfd poll_fd{.fd = fd, .events = POLLIN, .revents = 0};
    int ready = ::poll(&poll_fd, 1, PollTimeout(left));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, absl::StrCat("poll ", what));
    if (ready == 0 && left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat(what, ": nothing within ", absl::FormatDuration(timeout)));
    }
  }
}

absl::StatusOr<OwnedFd> AcceptWithin(int listening_fd, absl::Duration timeout, absl::string_view what) {
  STILL_RETURN_IF_ERROR(WaitReadable(listening_fd, timeout, what));
  OwnedFd fd(::accept4(listening_fd, nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("accept ", what));
  return fd;
}

absl::Status SendWithFd(int socket_fd, absl::string_view data, int fd_to_pass) {
  iovec part{.iov_base = const_cast<char*>(data.data()), .iov_len = data.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd_to_pass, sizeof(int));
  ssize_t sent;
  do {
    sent = ::sendmsg(socket_fd, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0) return ErrnoStatus(errno, "sendmsg with a descriptor");
  // The descriptor went with the first byte; the rest is plain data.
  return WriteAll(socket_fd, data.data() + sent, data.size() - static_cast<size_t>(sent), "socket");
}

absl::StatusOr<size_t> ReceiveWithFd(int socket_fd, void* out, size_t size, OwnedFd& passed) {
  iovec part{.iov_base = out, .iov_len = size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = ::recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno == ECONNRESET) return 0;
  if (got < 0) return ErrnoStatus(errno, "recvmsg");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
    passed = OwnedFd(fd);
  }
  return static_cast<size_t>(got);
}

absl::StatusOr<SocketPair> MakeSocketPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoStatus(errno, "socketpair");
  return SocketPair{OwnedFd(fds[0]), OwnedFd(fds[1])};
}

}  // namespace still
