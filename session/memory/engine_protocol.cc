#include "session/memory/engine_protocol.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <type_traits>

#include "absl/strings/string_view.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

static_assert(std::is_trivially_copyable_v<EngineCommand> && std::is_trivially_copyable_v<EngineAnswer>);

// False at the end.
absl::StatusOr<bool> ReceivePacket(int socket, void* bytes, size_t size, OwnedFd& fd) {
  absl::StatusOr<size_t> got = ReceiveWithFd(socket, bytes, size, fd);
  if (!got.ok()) return Annotate(got.status(), "hear the memory engine");
  if (*got == 0) return false;
  if (*got != size) return absl::InternalError("the memory engine is of another version");
  return true;
}

absl::Status SendPacket(int socket, absl::string_view packet) {
  ssize_t sent;
  do {
    sent = ::send(socket, packet.data(), packet.size(), MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent < 0 ? ErrnoStatus(errno, "speak to the memory engine") : absl::OkStatus();
}

template <typename Packet>
absl::string_view BytesOf(const Packet& packet) {
  return {reinterpret_cast<const char*>(&packet), sizeof packet};
}

}  // namespace

int64_t NumberOf(const MemorySaver::Wish& wish) {
  return static_cast<int64_t>(wish.content) | (wish.track ? kTrack : 0) | (wish.over_image ? kOverImage : 0);
}

MemorySaver::Wish WishOf(int64_t number) {
  return {.content = static_cast<MemorySaver::Content>(number & ~(kTrack | kOverImage)),
          .track = (number & kTrack) != 0,
          .over_image = (number & kOverImage) != 0};
}

absl::Status SendCommand(int socket, const EngineCommand& command, int fd) {
  return fd < 0 ? SendPacket(socket, BytesOf(command)) : SendWithFd(socket, BytesOf(command), fd);
}

absl::StatusOr<std::optional<EnginePacket>> ReceiveCommand(int socket) {
  EnginePacket packet;
  STILL_ASSIGN_OR_RETURN(bool more, ReceivePacket(socket, &packet.command, sizeof packet.command, packet.fd));
  if (!more) return std::nullopt;
  return packet;
}

absl::Status SendAnswer(int socket, const absl::Status& status, const MemoryFigures& figures) {
  EngineAnswer answer{.code = static_cast<int32_t>(status.code()), .figures = figures};
  const absl::string_view text = status.message();
  std::copy_n(text.begin(), std::min(text.size(), sizeof answer.message - 1), answer.message);
  return SendPacket(socket, BytesOf(answer));
}

absl::StatusOr<EngineAnswer> ReceiveAnswer(int socket) {
  EngineAnswer answer;
  OwnedFd none;
  STILL_ASSIGN_OR_RETURN(bool more, ReceivePacket(socket, &answer, sizeof answer, none));
  if (!more) return absl::UnavailableError("the memory engine has ended");
  answer.message[sizeof answer.message - 1] = '\0';
  return answer;
}

}  // namespace still::session
