#include "session/memory/engine_service.h"

#include "session/memory/engine_protocol.h"

namespace still::session {
namespace {

absl::Status Execute(EnginePacket packet, MemorySaver& saver) {
  switch (packet.command.request) {
    case EngineRequest::kArm:
      return saver.Arm(std::move(packet.fd), WishOf(packet.command.number));
    case EngineRequest::kRound:
      return saver.LastRound();
    case EngineRequest::kProtect:
      return saver.Protect();
    case EngineRequest::kSave:
      return saver.Save(absl::FromUnixMicros(packet.command.number));
    case EngineRequest::kFinish:
      return saver.Finish(packet.fd);
  }
  return absl::InternalError("the memory engine was asked for something unknown");
}

}  // namespace

absl::Status ServeEngine(int socket, MemorySaver& saver) {
  for (;;) {
    STILL_ASSIGN_OR_RETURN(std::optional<EnginePacket> packet, ReceiveCommand(socket));
    if (!packet.has_value()) return absl::OkStatus();
    const absl::Status done = Execute(*std::move(packet), saver);
    STILL_RETURN_IF_ERROR(SendAnswer(socket, done, saver.figures()));
  }
}

}  // namespace still::session
