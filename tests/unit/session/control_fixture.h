// A session over a FakeVm, with its control service on a socket, and one capture of it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "base/file.h"
#include "gtest/gtest.h"
#include "session/control/control_service.h"
#include "tests/support/fake_vm.h"

namespace still::testing {

class ControlFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-control-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    service_.reset();
    session_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  void StartWith(FakeVmOptions fake) {
    sessionpb::SessionConfig config;
    config.set_name("web");
    config.set_kernel(JoinPath(directory_, "kernel"));
    ASSERT_TRUE(WriteFileAtomically(config.kernel(), "not looked at").ok());
    config.mutable_machine()->set_direct_kernel(true);
    config.mutable_machine()->set_vcpus(1);
    config.mutable_machine()->set_memory_bytes(64 << 20);
    config.set_vsock_backend(sessionpb::SessionConfig::OFF);
    session::StartOptions options{.directory = directory_};
    fake.disks.push_back({.name = "vda", .content = std::string(64 << 10, 'x')});
    options.start_vm = [this, &fake](const session::VmConfig&) -> absl::StatusOr<std::unique_ptr<session::Vm>> {
      auto vm = std::make_unique<FakeVm>(std::move(fake));
      vm_ = vm.get();
      return vm;
    };
    absl::StatusOr<std::unique_ptr<session::Session>> session = session::Session::Start(config, std::move(options));
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
    service_ = std::make_unique<session::ControlService>(*session_);
    const std::string path = JoinPath(directory_, "control.sock");
    absl::StatusOr<std::unique_ptr<grpc::Server>> server = session::ServeControl(*service_, path);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = sessionpb::SessionControl::NewStub(grpc::CreateChannel("unix:" + path, grpc::InsecureChannelCredentials()));
  }

  // Until the capture is pinned, or has failed. Nobody takes its memory.
  void Begin(const sessionpb::BeginCaptureRequest& request) {
    // What a capture is told before it is pinned: prepared, and that its steps begin and end.
    constexpr int kMostEvents = 64;
    capture_ = stub_->BeginCapture(&context_, request);
    sessionpb::CaptureEvent event;
    for (int i = 0; i < kMostEvents && !event.has_pinned() && capture_->Read(&event); ++i) {
      if (event.has_prepared()) prepared_ = event.prepared();
      if (event.has_failed()) failed_ = event.failed();
    }
    if (event.has_pinned()) pinned_ = event.pinned();
  }
  // Of a capture that is pinned.
  void End() {
    grpc::ClientContext context;
    sessionpb::EndCaptureRequest end;
    sessionpb::EndCaptureResponse ended;
    end.set_capture_id(prepared_.capture_id());
    ASSERT_TRUE(stub_->EndCapture(&context, end, &ended).ok());
    sessionpb::CaptureEvent event;
    while (capture_->Read(&event)) {
    }
    EXPECT_TRUE(capture_->Finish().ok());
  }

  std::string directory_;
  FakeVm* vm_ = nullptr;  // Of session_.
  std::unique_ptr<session::Session> session_;
  std::unique_ptr<session::ControlService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<sessionpb::SessionControl::Stub> stub_;
  grpc::ClientContext context_;  // Of capture_.
  std::unique_ptr<grpc::ClientReader<sessionpb::CaptureEvent>> capture_;
  sessionpb::CapturePrepared prepared_;
  sessionpb::CaptureFailed failed_;
  sessionpb::CapturePinned pinned_;
};

}  // namespace still::testing
