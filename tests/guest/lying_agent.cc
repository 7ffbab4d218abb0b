// lying-agent: dials the host as still-agent does, and lies in every field of every answer.
#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <unistd.h>

#include <memory>

#include "base/clock.h"
#include "base/file.h"
#include "guest-agent/connection.h"
#include "guest-agent/options.h"
#include "proto/aliases.h"
#include "proto/guest.grpc.pb.h"
#include "tests/guest/lies.h"

namespace still {
namespace {

grpc::Status Lied(google::protobuf::Message& answer) {
  testing::LieInEveryField(answer);
  return grpc::Status::OK;
}

// Everything but Exec, whose bytes are its caller's.
class Liar : public guestpb::Guest::Service {
  grpc::Status Init(grpc::ServerContext*, const guestpb::InitRequest*, guestpb::InitResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status Quiesce(grpc::ServerContext*, const guestpb::QuiesceRequest*,
                       guestpb::QuiesceResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status RenewQuiesce(grpc::ServerContext*, const guestpb::RenewQuiesceRequest*,
                            guestpb::RenewQuiesceResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status Thaw(grpc::ServerContext*, const guestpb::ThawRequest*, guestpb::ThawResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status QuiesceStatus(grpc::ServerContext*, const guestpb::QuiesceStatusRequest*,
                             guestpb::QuiesceStatusResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest*,
                             guestpb::AdoptIdentityResponse* answer) override {
    return Lied(*answer);
  }
  grpc::Status Shutdown(grpc::ServerContext*, const guestpb::ShutdownRequest*, guestpb::ShutdownResponse*) override {
    return grpc::Status(grpc::StatusCode::INTERNAL, testing::Lie().substr(0, 2000));
  }
};

int Main() {
  agent::Options options;
  absl::StatusOr<std::string> cmdline = ReadFile("/proc/cmdline", 64 << 10);
  if (!cmdline.ok() || !agent::ApplyKernelCommandLine(*cmdline, options).ok()) return 2;
  Liar liar;
  grpc::ServerBuilder builder;
  builder.RegisterService(&liar);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  for (;;) {
    absl::StatusOr<OwnedFd> connection = agent::Dial(options.endpoint);
    if (connection.ok()) {
      OwnedFd watched(::dup(connection->get()));
      grpc::AddInsecureChannelFromFd(server.get(), connection->Release());
      agent::WaitForConnectionEnd(watched.get(), -1);
    }
    Clock::Real().Sleep(absl::Milliseconds(200));
  }
}

}  // namespace
}  // namespace still

int main() { return still::Main(); }
