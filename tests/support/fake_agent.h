// FakeAgent: a guest's agent over a real connection, with a script instead of a guest. It dials as the real one does:
// give MakeVsock() to a GuestLink.
//
//   FakeAgent agent;
//   GuestLink link(agent.MakeVsock(), {.session = "web"});
//   agent.adopt = [](const guestpb::AdoptIdentityRequest&, guestpb::AdoptIdentityResponse*) { return grpc::Status::OK; };
//
// ScriptedVsock gives a GuestLink the connections, and errors, that a test pushes.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "proto/aliases.h"
#include "proto/guest.grpc.pb.h"
#include "session/vsock/vsock_host.h"

namespace still::testing {

class ScriptedVsock : public session::VsockHost {
 public:
  void Push(absl::StatusOr<OwnedFd> dialled);

  uint32_t port() const override { return 1024; }
  uint32_t guest_cid() const override { return 70000; }
  absl::string_view backend() const override { return "fake"; }
  session::VsockAttachment attachment() const override { return {}; }
  absl::StatusOr<OwnedFd> Connect(uint32_t, absl::Duration) override { return absl::UnavailableError("nobody"); }
  absl::StatusOr<OwnedFd> Accept(absl::Duration timeout) override;
  void Shutdown() override;

 private:
  absl::Mutex mutex_;
  std::deque<absl::StatusOr<OwnedFd>> dialled_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
};

class FakeAgent : private guestpb::Guest::Service {
 public:
  FakeAgent();
  ~FakeAgent() override;

  // Every Accept on it is a new connection of this agent, up to `connections` of them. The agent must outlive it.
  std::unique_ptr<session::VsockHost> MakeVsock(int connections = 1);

  // It hangs: Ping is not answered any more.
  std::atomic<bool> hangs = false;
  // The host's end of a new connection of this agent.
  absl::StatusOr<OwnedFd> Dial();

  // Set before the first connection.
  std::string version = "9.9";
  std::vector<std::string> features = {"identity"};
  // Sees the answer of each call but Exec before it is sent, and may change it or give an error in its place.
  std::function<grpc::Status(const std::string& call, google::protobuf::Message& answer)> lie;
  std::function<grpc::Status(const guestpb::AdoptIdentityRequest&, guestpb::AdoptIdentityResponse*)> adopt;
  // Answers Thaw; it succeeds where nothing is set. Quiesce and RenewQuiesce always do.
  std::function<grpc::Status(const guestpb::ThawRequest&, guestpb::ThawResponse*)> thaw;

  // Answers Exec; where nothing is set it is not there.
  std::function<grpc::Status(grpc::ServerContext&, const guestpb::ExecRequest&)> exec;

  // The calls so far, but Init: "Ping", "Quiesce", ...
  std::vector<std::string> calls();

 private:
  grpc::Status Init(grpc::ServerContext*, const guestpb::InitRequest* request,
                    guestpb::InitResponse* response) override;
  grpc::Status Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse* response) override;
  grpc::Status Shutdown(grpc::ServerContext*, const guestpb::ShutdownRequest* request,
                        guestpb::ShutdownResponse* response) override;
  grpc::Status Quiesce(grpc::ServerContext*, const guestpb::QuiesceRequest* request,
                       guestpb::QuiesceResponse* response) override;
  grpc::Status RenewQuiesce(grpc::ServerContext*, const guestpb::RenewQuiesceRequest* request,
                            guestpb::RenewQuiesceResponse* response) override;
  grpc::Status Thaw(grpc::ServerContext*, const guestpb::ThawRequest* request,
                    guestpb::ThawResponse* response) override;
  grpc::Status QuiesceStatus(grpc::ServerContext*, const guestpb::QuiesceStatusRequest* request,
                             guestpb::QuiesceStatusResponse* response) override;
  grpc::Status AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest* request,
                             guestpb::AdoptIdentityResponse* response) override;
  grpc::Status Exec(grpc::ServerContext* context, const guestpb::ExecRequest* request,
                    grpc::ServerWriter<guestpb::ExecOutput>* writer) override;

  // Notes the call, and lies if it is to.
  grpc::Status Answer(const std::string& call, google::protobuf::Message& answer);

  absl::Mutex mutex_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace still::testing
