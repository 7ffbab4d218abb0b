// Resume of SessionControl: the way out for a machine that was left paused, and for no other.
#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <chrono>
#include <memory>
#include <string>

#include "base/file.h"
#include "gtest/gtest.h"
#include "session/control/control_service.h"
#include "tests/support/fake_vm.h"

namespace still::session {
namespace {

using ::still::testing::FakeVm;
using ::still::testing::FakeVmOptions;

// What a capture is told before it is pinned: prepared, and that its steps begin and end.
constexpr int kMostEvents = 64;

class ResumeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-resume-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    service_.reset();
    session_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  void Start(bool paused) {
    sessionpb::SessionConfig config;
    config.set_name("web");
    config.set_kernel(JoinPath(directory_, "kernel"));
    ASSERT_TRUE(WriteFileAtomically(config.kernel(), "not looked at").ok());
    config.mutable_machine()->set_direct_kernel(true);
    config.mutable_machine()->set_vcpus(1);
    config.mutable_machine()->set_memory_bytes(64 << 20);
    config.set_vsock_backend(sessionpb::SessionConfig::OFF);
    StartOptions options{.directory = directory_};
    options.start_vm = [this, paused](const VmConfig&) -> absl::StatusOr<std::unique_ptr<Vm>> {
      FakeVmOptions fake{.directory = directory_, .paused = paused};
      fake.disks.push_back({.name = "vda", .content = std::string(64 << 10, 'x')});
      auto vm = std::make_unique<FakeVm>(std::move(fake));
      vm_ = vm.get();
      return vm;
    };
    absl::StatusOr<std::unique_ptr<Session>> session = Session::Start(config, std::move(options));
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
    service_ = std::make_unique<ControlService>(*session_);
    const std::string path = JoinPath(directory_, "control.sock");
    absl::StatusOr<std::unique_ptr<grpc::Server>> server = ServeControl(*service_, path);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = sessionpb::SessionControl::NewStub(grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials()));
  }

  grpc::Status Resume(bool* was_paused) {
    grpc::ClientContext context;
    sessionpb::ResumeResponse response;
    grpc::Status status = stub_->Resume(&context, {}, &response);
    *was_paused = response.was_paused();
    return status;
  }

  std::string directory_;
  FakeVm* vm_ = nullptr;  // Of session_.
  std::unique_ptr<Session> session_;
  std::unique_ptr<ControlService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<sessionpb::SessionControl::Stub> stub_;
};

TEST_F(ResumeTest, WhatWasLeftPausedRunsAndWhatRunsIsLeftAlone) {
  ASSERT_NO_FATAL_FAILURE(Start(/*paused=*/true));
  EXPECT_FALSE(vm_->running());
  bool was_paused = false;
  ASSERT_TRUE(Resume(&was_paused).ok());
  EXPECT_TRUE(was_paused);
  EXPECT_TRUE(vm_->running());
  ASSERT_TRUE(Resume(&was_paused).ok());
  EXPECT_FALSE(was_paused);
}

TEST_F(ResumeTest, AMachineThatDoesNotGoOnIsAnError) {
  ASSERT_NO_FATAL_FAILURE(Start(/*paused=*/true));
  vm_->FailNext("Resume", absl::UnavailableError("no answer"));
  bool was_paused = false;
  EXPECT_EQ(Resume(&was_paused).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Resume(&was_paused).ok());
  EXPECT_TRUE(vm_->running());
}

TEST_F(ResumeTest, APauseThatBelongsToACaptureIsLeftToIt) {
  ASSERT_NO_FATAL_FAILURE(Start(/*paused=*/false));
  grpc::ClientContext context;
  sessionpb::BeginCaptureRequest request;
  request.set_quiesce(sessionpb::QUIESCE_OFF);
  std::unique_ptr<grpc::ClientReader<sessionpb::CaptureEvent>> capture = stub_->BeginCapture(&context, request);
  sessionpb::CaptureEvent event;
  std::string id;
  for (int i = 0; i < kMostEvents && !event.has_pinned() && capture->Read(&event); ++i) {
    if (event.has_prepared()) id = event.prepared().capture_id();
  }
  ASSERT_TRUE(event.has_pinned()) << event.ShortDebugString();
  bool was_paused = false;
  EXPECT_EQ(Resume(&was_paused).error_code(), grpc::StatusCode::FAILED_PRECONDITION);

  grpc::ClientContext end_context;
  sessionpb::EndCaptureRequest end;
  sessionpb::EndCaptureResponse ended;
  end.set_capture_id(id);
  ASSERT_TRUE(stub_->EndCapture(&end_context, end, &ended).ok());
  while (capture->Read(&event)) {
  }
  EXPECT_TRUE(capture->Finish().ok());
  EXPECT_TRUE(Resume(&was_paused).ok());
  EXPECT_FALSE(was_paused);
}

}  // namespace
}  // namespace still::session
