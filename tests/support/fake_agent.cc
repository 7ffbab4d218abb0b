#include "tests/support/fake_agent.h"

#include <fcntl.h>
#include <grpcpp/server_posix.h>

#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/unix_socket.h"

namespace still::testing {
namespace {

class DialledVsock : public session::VsockHost {
 public:
  DialledVsock(FakeAgent& agent, int connections) : agent_(agent), left_(connections) {}

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
    return agent_.Dial();
  }
  void Shutdown() override {
    absl::MutexLock lock(&mutex_);
    shut_down_ = true;
  }

 private:
  FakeAgent& agent_;
  absl::Mutex mutex_;
  int left_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void ScriptedVsock::Push(absl::StatusOr<OwnedFd> dialled) {
  absl::MutexLock lock(&mutex_);
  dialled_.push_back(std::move(dialled));
}

absl::StatusOr<OwnedFd> ScriptedVsock::Accept(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !dialled_.empty() || shut_down_; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&ready), timeout)) return absl::DeadlineExceededError("nobody dials");
  if (shut_down_) return absl::CancelledError("shut down");
  absl::StatusOr<OwnedFd> next = std::move(dialled_.front());
  dialled_.pop_front();
  return next;
}

void ScriptedVsock::Shutdown() {
  absl::MutexLock lock(&mutex_);
  shut_down_ = true;
}

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
  return std::make_unique<DialledVsock>(*this, connections);
}

absl::StatusOr<OwnedFd> FakeAgent::Dial() {
  STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
  STILL_CHECK(::fcntl(pair.second.get(), F_SETFL, O_NONBLOCK) == 0);
  // What a test has set up is there before the first call; gRPC, which is not built for the thread sanitizer, does not show it.
  absl::MutexLock lock(&mutex_);
  grpc::AddInsecureChannelFromFd(server_.get(), pair.second.Release());
  return std::move(pair.first);
}

grpc::Status FakeAgent::Answer(const std::string& call, google::protobuf::Message& answer) {
  std::function<grpc::Status(const std::string&, google::protobuf::Message&)> now;
  {
    absl::MutexLock lock(&mutex_);
    if (call != "Init") calls_.push_back(call);
    now = lie;
  }
  return now == nullptr ? grpc::Status::OK : now(call, answer);
}

grpc::Status FakeAgent::Init(grpc::ServerContext*, const guestpb::InitRequest*, guestpb::InitResponse* response) {
  absl::ReleasableMutexLock set_up(&mutex_);
  response->set_agent_version(version);
  for (const std::string& feature : features) response->add_features(feature);
  set_up.Release();
  return Answer("Init", *response);
}

grpc::Status FakeAgent::Ping(grpc::ServerContext*, const guestpb::PingRequest*, guestpb::PingResponse* response) {
  if (hangs) return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "hangs");
  return Answer("Ping", *response);
}

grpc::Status FakeAgent::Shutdown(grpc::ServerContext*, const guestpb::ShutdownRequest*,
                                 guestpb::ShutdownResponse* response) {
  return Answer("Shutdown", *response);
}

grpc::Status FakeAgent::Quiesce(grpc::ServerContext*, const guestpb::QuiesceRequest*,
                                guestpb::QuiesceResponse* response) {
  response->add_frozen()->set_mount_point("/data");
  return Answer("Quiesce", *response);
}

grpc::Status FakeAgent::QuiesceStatus(grpc::ServerContext*, const guestpb::QuiesceStatusRequest*,
                                      guestpb::QuiesceStatusResponse* response) {
  return Answer("QuiesceStatus", *response);
}

grpc::Status FakeAgent::RenewQuiesce(grpc::ServerContext*, const guestpb::RenewQuiesceRequest*,
                                     guestpb::RenewQuiesceResponse* response) {
  response->set_remaining_ms(10'000);
  response->set_boottime_ns(77'000'000'000);
  return Answer("RenewQuiesce", *response);
}

grpc::Status FakeAgent::Thaw(grpc::ServerContext*, const guestpb::ThawRequest* request,
                             guestpb::ThawResponse* response) {
  grpc::Status answer = Answer("Thaw", *response);
  return thaw == nullptr || !answer.ok() ? answer : thaw(*request, response);
}

std::vector<std::string> FakeAgent::calls() {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

grpc::Status FakeAgent::AdoptIdentity(grpc::ServerContext*, const guestpb::AdoptIdentityRequest* request,
                                      guestpb::AdoptIdentityResponse* response) {
  if (adopt != nullptr) return adopt(*request, response);
  return Answer("AdoptIdentity", *response);
}

grpc::Status FakeAgent::Exec(grpc::ServerContext* context, const guestpb::ExecRequest* request,
                             grpc::ServerWriter<guestpb::ExecOutput>*) {
  if (exec == nullptr) return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "not in this test");
  return exec(*context, *request);
}

}  // namespace still::testing
