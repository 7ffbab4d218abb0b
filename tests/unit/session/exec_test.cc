// Exec through a session: whoever asked for it may go while the program prints nothing.
#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/file.h"
#include "gtest/gtest.h"
#include "proto/grpc_status.h"
#include "proto/session.grpc.pb.h"
#include "session/guest/guest_client.h"
#include "tests/support/fake_agent.h"

namespace still::session {
namespace {

// Only where something never happens.
constexpr absl::Duration kHangs = absl::Minutes(2);

// As ControlService does it; that one takes a session with a vsock device.
class Relay final : public sessionpb::SessionControl::Service {
 public:
  explicit Relay(GuestClient& client) : client_(client) {}
  grpc::Status Exec(grpc::ServerContext* context, const guestpb::ExecRequest* request,
                    grpc::ServerWriter<guestpb::ExecOutput>* writer) override {
    auto forward = [&](const guestpb::ExecOutput& output) { return writer->Write(output); };
    const absl::Status status = client_.Exec(*request, forward, context).status();
    ended.Notify();
    return ToGrpc(status);
  }
  absl::Notification ended;

 private:
  GuestClient& client_;
};

class ExecTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-exec-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    agent_.exec = [this](grpc::ServerContext& context, const guestpb::ExecRequest&) {
      begun_.Notify();
      const absl::Duration give_up = Clock::Real().Monotonic() + kHangs;
      while (!context.IsCancelled() && Clock::Real().Monotonic() < give_up) Clock::Real().Sleep(absl::Milliseconds(5));
      if (context.IsCancelled()) cancelled_.Notify();
      return grpc::Status::OK;
    };
    auto client = GuestClient::Connect(*agent_.Dial(), {.session = "web"}, kHangs);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    relay_ = std::make_unique<Relay>(*client_);
    address_ = "unix:" + JoinPath(directory_, "control.sock");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address_, grpc::InsecureServerCredentials());
    builder.RegisterService(relay_.get());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }
  // Begins a program that prints nothing, and ends the call as a process that is killed does: `still exec`.
  void BeginAndGo() {
    auto stub = sessionpb::SessionControl::NewStub(grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
    grpc::ClientContext call;
    guestpb::ExecRequest request;
    request.add_argv("sleep");
    auto reader = stub->Exec(&call, request);
    ASSERT_TRUE(begun_.WaitForNotificationWithTimeout(kHangs));
    call.TryCancel();
    (void)reader->Finish();
  }

  std::string directory_;
  std::string address_;
  absl::Notification begun_;
  absl::Notification cancelled_;
  still::testing::FakeAgent agent_;
  std::unique_ptr<GuestClient> client_;
  std::unique_ptr<Relay> relay_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(ExecTest, WhenTheCallerIsGoneTheAgentIsToldThoughTheProgramPrintsNothing) {
  ASSERT_NO_FATAL_FAILURE(BeginAndGo());
  EXPECT_TRUE(cancelled_.WaitForNotificationWithTimeout(kHangs / 2)) << "it waits for the program to print something";
  client_->Disconnect();
  EXPECT_TRUE(relay_->ended.WaitForNotificationWithTimeout(kHangs / 2));
}

}  // namespace
}  // namespace still::session
