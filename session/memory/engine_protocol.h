// What still-session and its memory engine (still-memory) say to each other: one packet a command, one packet an answer,
// on a socket pair of one host (SOCK_SEQPACKET). Both are of one version. Not thread-safe.
//
//   command   descriptor   answer when
//   kArm      the sink     every page is protected, and few are open. `number`: a MemorySaver::Wish
//   kRound                 what was open is protected again, for the last time before the pause
//   kProtect               the same; the machine stands still
//   kSave                  nothing was written late; copying has begun. `number`: when the machine ran again
//   kFinish   the device   everything is in the sink
//             state
//
// The end of the socket is the end of the engine: the machine's memory is free then.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "session/memory/memory_saver.h"

namespace still::session {

// still-memory's first argument: a session that has lived through an upgrade of the package has no engine of its version.
inline constexpr uint64_t kEngineProtocol = 2;

enum class EngineRequest : uint32_t { kArm = 1, kRound, kProtect, kSave, kFinish };

// A MemorySaver::Wish as EngineCommand::number: its content, and these.
inline constexpr int64_t kTrack = 256;
inline constexpr int64_t kOverImage = 512;
int64_t NumberOf(const MemorySaver::Wish& wish);
MemorySaver::Wish WishOf(int64_t number);

struct EngineCommand {
  EngineRequest request = EngineRequest::kArm;
  int64_t number = 0;  // kSave: microseconds since 1970.
};

struct EngineAnswer {
  int32_t code = 0;  // absl::StatusCode
  char message[512] = {};
  MemoryFigures figures;
};

struct EnginePacket {
  EngineCommand command;
  OwnedFd fd;
};

absl::Status SendCommand(int socket, const EngineCommand& command, int fd = -1);
// Blocks. nullopt: the other end is closed.
absl::StatusOr<std::optional<EnginePacket>> ReceiveCommand(int socket);

absl::Status SendAnswer(int socket, const absl::Status& status, const MemoryFigures& figures);
// UNAVAILABLE when the other end is closed. The answer's own error is in `code` and `message`.
absl::StatusOr<EngineAnswer> ReceiveAnswer(int socket);

}  // namespace still::session
