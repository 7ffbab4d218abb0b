#include "tests/support/fake_agent.h"

#include <fcntl.h>
#include <grpcpp/server_posix.h>

#include <chrono>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/unix_socket.h"

namespace still::testing {
namespace {

class DialledVsock : public session::VsockHost {
 public:
  DialledVsock(grpc::Server& server, int connections) : server_(server), left_(connections) {}

  uint32_t port() const override { return 1024; }
  uint32_t guest_cid() const override { return 70000; }
  absl::string_view backend() const override { return "fake"; }
  session::VsockAttachment attachment() const override { return {}; }
  absl::StatusOr<OwnedFd> Connect(uint32_t, absl::Duration) override { return absl::UnavailableError("nobody"); }

  absl::StatusOr<OwnedFd> Accept(absl::Duration timeout) override {
    absl::MutexLock lock(&mutex_);
    auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return left_ > 0 || shut_down_; };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), timeout)) return absl::DeadlineExceededError("nobody dials");
    if (shut_down_) return absl::CancelledError("shut down");
    --left_;
    STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
    STILL_CHECK(::fcntl(pair.second.get(), F_SETFL, O_NONBLOCK) == 0);
    grpc::AddInsecureChannelFromFd(&server_, pair.second.Release());
    return std::move(pair.first);
  }
  void Shutdown() override {
    absl::MutexLock lock(&mutex_);
    shut_down_ = true;
  }

 private:
  grpc::Server& server_;
  absl::Mutex mutex_;
  int left_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

FakeAgent::FakeAgent() {
  grpc::ServerBuilder builder;
  builder.RegisterService(static_cast<guestpb::Guest::Service*>(this));
  server_ = builder.BuildAndStart();
  STILL_CHECK(server_ != nullptr);
}

FakeAgent::~FakeAgent() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

std::unique_ptr<session::VsockHost> FakeAgent::MakeVsock(int connections) {
  return std::make_unique<DialledVsock>(*server_, connections);
}

grpc::Status FakeAgent::Init(grpc::ServerContext*, const guestpb::InitRequest*, guestpb::InitResponse* response) {
  response->set_agent_version("9.9");
  for (const std::string& feature : features) response->add_features(feature);
  return grpc::Status::OK;
}

grpc::Status FakeAgent::Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse*) {
  Note("Ping");
  return hangs ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "hangs") : grpc::Status::OK;
}

grpc::Status FakeAgent::Quiesce(grpc::ServerContext*, const guestpb::QuiesceRequest*,
                                guestpb::QuiesceResponse* response) {
  Note("Quiesce");
  response->add_frozen()->set_mount_point("/data");
  return grpc::Status::OK;
}

grpc::Status FakeAgent::RenewQuiesce(grpc::ServerContext*, const guestpb::RenewQuiesceRequest*,
                                     guestpb::RenewQuiesceResponse* response) {
  Note("RenewQuiesce");
  response->set_remaining_ms(10'000);
  response->set_boottime_ns(77'000'000'000);
  return grpc::Status::OK;
}

grpc::Status FakeAgent::Thaw(grpc::ServerContext*, const guestpb::ThawRequest* request,
                             guestpb::ThawResponse* response) {
  Note("Thaw");
  return thaw == nullptr ? grpc::Status::OK : thaw(*request, response);
}

void FakeAgent::Note(const std::string& call) {
  absl::MutexLock lock(&mutex_);
  calls_.push_back(call);
}

std::vector<std::string> FakeAgent::calls() {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

grpc::Status FakeAgent::AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest* request,
                                      guestpb::AdoptIdentityResponse* response) {
  return adopt(*request, response);
}

}  // namespace still::testing
