#include "session/memory/engine_protocol.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

namespace still::session {
namespace {

static_assert(std::is_trivially_copyable_v<EngineCommand> && std::is_trivially_copyable_v<EngineAnswer>);

absl::Status SendPacket(int socket, const void* bytes, size_t size, int fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec data{.iov_base = const_cast<void*>(bytes), .iov_len = size};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  ssize_t sent;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? ErrnoStatus(errno, "speak to the memory engine") : absl::OkStatus();
}

// False at the end.
absl::StatusOr<bool> ReceivePacket(int socket, void* bytes, size_t size, OwnedFd* fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec data{.iov_base = bytes, .iov_len = size};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno != ECONNRESET) return ErrnoStatus(errno, "hear the memory engine");
  if (got <= 0) return false;
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    int received;
    std::memcpy(&received, CMSG_DATA(header), sizeof received);
    OwnedFd owned(received);
    if (fd != nullptr) *fd = std::move(owned);
  }
  if (static_cast<size_t>(got) != size) return absl::InternalError("the memory engine is of another version");
  return true;
}

}  // namespace

absl::Status SendCommand(int socket, const EngineCommand& command, int fd) {
  return SendPacket(socket, &command, sizeof command, fd);
}

absl::StatusOr<std::optional<EnginePacket>> ReceiveCommand(int socket) {
  EnginePacket packet;
  STILL_ASSIGN_OR_RETURN(bool more, ReceivePacket(socket, &packet.command, sizeof packet.command, &packet.fd));
  if (!more) return std::nullopt;
  return packet;
}

absl::Status SendAnswer(int socket, const absl::Status& status, const MemoryFigures& figures) {
  EngineAnswer answer{.code = static_cast<int32_t>(status.code()), .figures = figures};
  const absl::string_view text = status.message();
  std::copy_n(text.begin(), std::min(text.size(), sizeof answer.message - 1), answer.message);
  return SendPacket(socket, &answer, sizeof answer, -1);
}

absl::StatusOr<EngineAnswer> ReceiveAnswer(int socket) {
  EngineAnswer answer;
  STILL_ASSIGN_OR_RETURN(bool more, ReceivePacket(socket, &answer, sizeof answer, nullptr));
  if (!more) return absl::UnavailableError("the memory engine has ended");
  answer.message[sizeof answer.message - 1] = '\0';
  return answer;
}

}  // namespace still::session
