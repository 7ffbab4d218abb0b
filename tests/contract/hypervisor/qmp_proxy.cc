#include "tests/contract/hypervisor/qmp_proxy.h"

#include <sys/socket.h>

#include <cstring>

#include "base/unix_socket.h"
#include "nlohmann/json.hpp"

namespace still::testing {
namespace {

constexpr size_t kChunk = 64 << 10;

void SendAll(int socket, const char* data, size_t size) {
  while (size > 0) {
    ssize_t sent = ::send(socket, data, size, MSG_NOSIGNAL);
    if (sent <= 0) return;  // One of the two has gone, which the other will see.
    data += sent;
    size -= static_cast<size_t>(sent);
  }
}

std::string NameOf(const std::string& line) {
  nlohmann::json command = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  return command.is_object() ? command.value("execute", "?") : "?";
}

// The descriptor that comes with a chunk is that of its last line: a client sends one line at a time.
ssize_t Receive(int socket, char* chunk, OwnedFd& fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec part{.iov_base = chunk, .iov_len = kChunk};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (cmsghdr* header = CMSG_FIRSTHDR(&message); got > 0 && header != nullptr) {
    int received;
    std::memcpy(&received, CMSG_DATA(header), sizeof received);
    fd = OwnedFd(received);
  }
  return got;
}

}  // namespace

absl::StatusOr<std::unique_ptr<QmpProxy>> QmpProxy::Start(OwnedFd qemu) {
  STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
  std::unique_ptr<QmpProxy> proxy(new QmpProxy);
  proxy->client_ = std::move(pair.first);
  proxy->ours_ = std::move(pair.second);
  proxy->qemu_ = std::move(qemu);
  proxy->commands_ = std::thread([raw = proxy.get()] { raw->PassCommands(); });
  proxy->answers_ = std::thread([raw = proxy.get()] { raw->PassAnswers(); });
  return proxy;
}

QmpProxy::~QmpProxy() {
  LetGo();
  ::shutdown(ours_.get(), SHUT_RDWR);
  ::shutdown(qemu_.get(), SHUT_RDWR);
  commands_.join();
  answers_.join();
}

void QmpProxy::HoldAfter(uint64_t commands) {
  absl::MutexLock lock(&mutex_);
  hold_after_ = seen_ + commands;
  held_.clear();
}

void QmpProxy::HoldAt(const std::string& command) {
  absl::MutexLock lock(&mutex_);
  hold_at_ = command;
  held_.clear();
}

void QmpProxy::LetGo() {
  absl::MutexLock lock(&mutex_);
  hold_at_.clear();
  hold_after_ = UINT64_MAX;
}

std::string QmpProxy::held() const {
  absl::MutexLock lock(&mutex_);
  return held_;
}

void QmpProxy::AwaitTurn(const std::string& line) {
  absl::MutexLock lock(&mutex_);
  ++seen_;
  if (!hold_at_.empty() && NameOf(line) == hold_at_) {
    hold_after_ = seen_ - 1;
    hold_at_.clear();
  }
  if (seen_ > hold_after_ && held_.empty()) held_ = NameOf(line);
  auto turn = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return seen_ <= hold_after_; };
  mutex_.Await(absl::Condition(&turn));
}

void QmpProxy::PassCommands() {
  std::string buffer;
  std::string chunk(kChunk, '\0');
  OwnedFd fd;
  for (ssize_t got; (got = Receive(ours_.get(), chunk.data(), fd)) > 0;) {
    buffer.append(chunk, 0, static_cast<size_t>(got));
    for (size_t end; (end = buffer.find('\n')) != std::string::npos;) {
      const std::string line = buffer.substr(0, end + 1);
      buffer.erase(0, end + 1);
      AwaitTurn(line);
      if (fd.valid() && buffer.empty()) {
        (void)SendWithFd(qemu_.get(), line, fd.get());  // As SendAll.
        fd.Reset();
      } else {
        SendAll(qemu_.get(), line.data(), line.size());
      }
    }
  }
  ::shutdown(qemu_.get(), SHUT_RDWR);
}

void QmpProxy::PassAnswers() {
  std::string chunk(kChunk, '\0');
  for (ssize_t got; (got = ::recv(qemu_.get(), chunk.data(), kChunk, 0)) > 0;) {
    SendAll(ours_.get(), chunk.data(), static_cast<size_t>(got));
  }
  ::shutdown(ours_.get(), SHUT_RDWR);
}

}  // namespace still::testing
