#include "session/vsock/device/unix_bridge.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace still::vsock {
namespace {

constexpr uint32_t kStreamEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;

class UnixStream : public HostStream {
 public:
  explicit UnixStream(int fd) : fd_(fd) {}
  ~UnixStream() override { ::close(fd_); }  // Which also takes it out of the epoll set.

  IoResult Read(const iovec* parts, int count) override {
    ssize_t got;
    do {
      got = ::readv(fd_, parts, count);
    } while (got < 0 && errno == EINTR);
    if (got == 0) return {IoResult::kEnd, 0};
    return Result(got);
  }

  IoResult Write(const iovec* parts, int count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts);
    message.msg_iovlen = static_cast<size_t>(count);
    ssize_t sent;
    do {
      sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (sent < 0 && errno == EINTR);
    return Result(sent);
  }

  bool Accepted(uint32_t host_port) override {
    char answer[32];
    int size = std::snprintf(answer, sizeof answer, "OK %u\n", host_port);
    return ::send(fd_, answer, static_cast<size_t>(size), MSG_NOSIGNAL | MSG_DONTWAIT) == size;
  }

  void EndOfGuestData() override { ::shutdown(fd_, SHUT_WR); }
  void GuestStoppedReading() override { ::shutdown(fd_, SHUT_RD); }

 private:
  static IoResult Result(ssize_t moved) {
    if (moved > 0) return {IoResult::kDone, static_cast<size_t>(moved)};
    if (moved < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {IoResult::kWouldBlock, 0};
    return {IoResult::kBroken, 0};
  }

  const int fd_;
};

// The port of "CONNECT <port>\n"; false for anything else.
bool ParseConnect(const char* line, size_t size, uint32_t* port) {
  constexpr char kVerb[] = "CONNECT ";
  constexpr size_t kVerbSize = sizeof kVerb - 1;
  if (size <= kVerbSize || std::memcmp(line, kVerb, kVerbSize) != 0) return false;
  uint64_t value = 0;
  for (size_t i = kVerbSize; i < size; ++i) {
    if (line[i] < '0' || line[i] > '9') return false;
    value = value * 10 + static_cast<uint64_t>(line[i] - '0');
    if (value >= UINT32_MAX) return false;  // VMADDR_PORT_ANY is nobody's port.
  }
  *port = static_cast<uint32_t>(value);
  return true;
}

}  // namespace

UnixBridge::UnixBridge(int epoll_fd, int listener_fd, int directory_fd)
    : epoll_fd_(epoll_fd), listener_fd_(listener_fd), directory_fd_(directory_fd) {
  if (listener_fd_ >= 0) Watch(EPOLL_CTL_ADD, listener_fd_, EPOLLIN, EventTag(EventKind::kListener, 0));
}

UnixBridge::~UnixBridge() {
  for (auto& [id, handshake] : handshakes_) ::close(handshake.fd);
}

bool UnixBridge::Watch(int operation, int fd, uint32_t events, uint64_t tag) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  return ::epoll_ctl(epoll_fd_, operation, fd, &event) == 0;
}

int UnixBridge::ConnectTo(const char* name) {
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // Through the descriptor, so that the directory's path may be of any length.
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", directory_fd_, name);
  // A full backlog is EAGAIN: the listener does not keep up, and the guest is refused rather than kept waiting.
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return fd;
  ::close(fd);
  return -1;
}

std::unique_ptr<HostStream> UnixBridge::Connect(const GuestDial& dial, ConnectionId id) {
  char name[64];
  int fd = -1;
  if (dial.privileged()) {
    std::snprintf(name, sizeof name, "vsock.sock_%u_privileged", dial.host_port);
    fd = ConnectTo(name);
  }
  if (fd < 0) {
    std::snprintf(name, sizeof name, "vsock.sock_%u", dial.host_port);
    fd = ConnectTo(name);
  }
  if (fd < 0) return nullptr;
  auto stream = std::make_unique<UnixStream>(fd);
  if (!Watch(EPOLL_CTL_ADD, fd, kStreamEvents, EventTag(EventKind::kStream, id))) return nullptr;
  return stream;
}

void UnixBridge::OnEvent(uint64_t tag, uint32_t events, uint64_t now_us) {
  ConnectionId id = IdOf(tag);
  switch (KindOf(tag)) {
    case EventKind::kListener:
      Accept(now_us);
      break;
    case EventKind::kHandshake:
      ContinueHandshake(id, now_us);
      break;
    case EventKind::kStream:
      if ((events & EPOLLOUT) != 0) device_->OnWritable(id, now_us);
      if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
        device_->OnHostGone(id);
      } else if ((events & (EPOLLIN | EPOLLRDHUP)) != 0) {
        device_->OnReadable(id);
      }
      break;
    default:
      break;
  }
}

void UnixBridge::Accept(uint64_t now_us) {
  for (;;) {
    int fd = ::accept4(listener_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EAGAIN) return;
      // Out of descriptors or memory: the listener would stay readable and keep us busy.
      Watch(EPOLL_CTL_MOD, listener_fd_, 0, EventTag(EventKind::kListener, 0));
      accept_again_us_ = now_us + kAcceptPauseUs;
      return;
    }
    ConnectionId id = device_->NewId();
    if (handshakes_.size() >= kMaxHandshakes || !device_->HasRoom() ||
        !Watch(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, EventTag(EventKind::kHandshake, id))) {
      ::close(fd);
      continue;
    }
    handshakes_[id] = {fd, now_us + kHandshakeUs};
  }
}

void UnixBridge::ContinueHandshake(ConnectionId id, uint64_t now_us) {
  auto found = handshakes_.find(id);
  if (found == handshakes_.end()) return;
  int fd = found->second.fd;
  // Looked at first, so that only the line is taken out of the socket and what follows stays there as data.
  char line[kMaxHandshakeBytes];
  ssize_t got = ::recv(fd, line, sizeof line, MSG_PEEK | MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  const char* newline = got > 0 ? static_cast<const char*>(std::memchr(line, '\n', static_cast<size_t>(got))) : nullptr;
  if (newline == nullptr) {
    if (got <= 0 || static_cast<size_t>(got) == sizeof line) EndHandshake(id);
    return;  // More of the line is another event.
  }
  uint32_t port = 0;
  auto size = static_cast<size_t>(newline - line);
  bool good =
      ParseConnect(line, size, &port) && ::recv(fd, line, size + 1, MSG_DONTWAIT) == static_cast<ssize_t>(size + 1);
  if (!good) {
    EndHandshake(id);
    return;
  }
  handshakes_.erase(found);
  // Modifying re-arms the edges: whatever is there already is reported once more, now to the device.
  auto stream = std::make_unique<UnixStream>(fd);
  if (Watch(EPOLL_CTL_MOD, fd, kStreamEvents, EventTag(EventKind::kStream, id))) {
    device_->Connect(id, std::move(stream), port, now_us);
  }
}

void UnixBridge::EndHandshake(ConnectionId id) {
  auto found = handshakes_.find(id);
  ::close(found->second.fd);
  handshakes_.erase(found);
}

void UnixBridge::Tick(uint64_t now_us) {
  if (accept_again_us_ != 0 && now_us >= accept_again_us_) {
    accept_again_us_ = 0;
    Watch(EPOLL_CTL_MOD, listener_fd_, EPOLLIN, EventTag(EventKind::kListener, 0));
  }
  std::vector<ConnectionId> overdue;
  for (auto& [id, handshake] : handshakes_) {
    if (now_us >= handshake.deadline_us) overdue.push_back(id);
  }
  for (ConnectionId id : overdue) EndHandshake(id);
}

uint64_t UnixBridge::NextDeadline() const {
  uint64_t next = accept_again_us_ != 0 ? accept_again_us_ : UINT64_MAX;
  for (const auto& [id, handshake] : handshakes_) next = std::min(next, handshake.deadline_us);
  return next;
}

}  // namespace still::vsock
