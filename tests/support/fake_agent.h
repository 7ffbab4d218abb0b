// FakeAgent: a guest's agent over a real connection, with a script instead of a guest. It dials as the real one does:
// give MakeVsock() to a GuestLink.
//
//   FakeAgent agent;
//   GuestLink link(agent.MakeVsock(), {.session = "web"});
//   agent.adopt = [](const guestpb::AdoptIdentityRequest&, guestpb::AdoptIdentityResponse*) { return grpc::Status::OK; };
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/aliases.h"
#include "proto/guest.grpc.pb.h"
#include "session/vsock/vsock_host.h"

namespace still::testing {

class FakeAgent : private guestpb::Guest::Service {
 public:
  FakeAgent();
  ~FakeAgent() override;

  // Every Accept on it is a new connection of this agent, up to `connections` of them. The agent must outlive it.
  std::unique_ptr<session::VsockHost> MakeVsock(int connections = 1);

  // It hangs: Ping is not answered any more.
  std::atomic<bool> hangs = false;
  // Set before the first connection.
  std::vector<std::string> features = {"identity"};
  std::function<grpc::Status(const guestpb::AdoptIdentityRequest&, guestpb::AdoptIdentityResponse*)> adopt;

 private:
  grpc::Status Init(grpc::ServerContext*, const guestpb::InitRequest* request,
                    guestpb::InitResponse* response) override;
  grpc::Status Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse* response) override;
  grpc::Status AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest* request,
                             guestpb::AdoptIdentityResponse* response) override;

  std::unique_ptr<grpc::Server> server_;
};

}  // namespace still::testing
