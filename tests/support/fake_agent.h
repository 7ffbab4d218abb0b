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

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
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
  // Answers Thaw; it succeeds where nothing is set. Quiesce and RenewQuiesce always do.
  std::function<grpc::Status(const guestpb::ThawRequest&, guestpb::ThawResponse*)> thaw;

  // The calls so far, but Init: "Ping", "Quiesce", ...
  std::vector<std::string> calls();

 private:
  grpc::Status Init(grpc::ServerContext*, const guestpb::InitRequest* request,
                    guestpb::InitResponse* response) override;
  grpc::Status Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse* response) override;
  grpc::Status Quiesce(grpc::ServerContext*, const guestpb::QuiesceRequest* request,
                       guestpb::QuiesceResponse* response) override;
  grpc::Status RenewQuiesce(grpc::ServerContext*, const guestpb::RenewQuiesceRequest* request,
                            guestpb::RenewQuiesceResponse* response) override;
  grpc::Status Thaw(grpc::ServerContext*, const guestpb::ThawRequest* request,
                    guestpb::ThawResponse* response) override;
  grpc::Status AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest* request,
                             guestpb::AdoptIdentityResponse* response) override;

  void Note(const std::string& call);

  absl::Mutex mutex_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace still::testing
