// A session that hangs after it has accepted a capture, and ones that only take their time.
#include "snapshot/capture_stream.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "base/bounded_queue.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kSilence = absl::Milliseconds(50);
// What a session may take that says something now and then: many times as long as one that says nothing.
constexpr uint64_t kRounds = 5;

// Says what it is told to, and nothing else.
class ScriptedSession final : public sessionpb::SessionControl::Service {
 public:
  grpc::Status BeginCapture(grpc::ServerContext*, const sessionpb::BeginCaptureRequest*,
                            grpc::ServerWriter<sessionpb::CaptureEvent>* writer) override {
    while (auto event = events_.Pop()) writer->Write(*event);
    return grpc::Status::OK;
  }
  void Say(sessionpb::CaptureEvent event) { events_.Push(std::move(event)); }
  void Leave() { events_.Close(); }

 private:
  BoundedQueue<sessionpb::CaptureEvent> events_{64};
};

class CaptureStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-stream-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    const std::string address = "unix:" + JoinPath(directory_, "control.sock");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&session_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    stub_ = sessionpb::SessionControl::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    stream_ = CaptureStream::Begin(
        *stub_, {}, {.session = "web", .on_step = [this](const std::string&) { ++steps_; }, .silence = kSilence});
  }
  void TearDown() override {
    stream_.reset();
    session_.Leave();
    server_->Shutdown(std::chrono::system_clock::now());
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  // And waits until that has come, however slow this host is.
  void Prepare(const std::string& step) {
    sessionpb::CaptureEvent event;
    event.mutable_prepared()->set_capture_id("c");
    session_.Say(std::move(event));
    SayStep(step);
    while (steps_ == 0) absl::SleepFor(kSilence / 10);
    ASSERT_TRUE(stream_->WaitPrepared().ok());
  }
  void SayStep(const std::string& name) {
    sessionpb::CaptureEvent event;
    event.mutable_phase()->set_name(name);
    session_.Say(std::move(event));
  }
  void SayPinned() {
    sessionpb::CaptureEvent event;
    event.mutable_pinned();
    session_.Say(std::move(event));
  }

  std::string directory_;
  ScriptedSession session_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<sessionpb::SessionControl::Stub> stub_;
  std::atomic<uint64_t> steps_ = 0;
  std::unique_ptr<CaptureStream> stream_;
};

TEST_F(CaptureStreamTest, ASessionThatHangsBeforeItsFirstWordIsGivenUpByName) {
  absl::Status waited = stream_->WaitPrepared().status();
  EXPECT_EQ(waited.code(), absl::StatusCode::kDeadlineExceeded) << waited;
  EXPECT_THAT(std::string(waited.message()), AllOf(HasSubstr("session web"), HasSubstr("still stop --force web")));
}

TEST_F(CaptureStreamTest, ASessionThatHangsInAStepIsGivenUpAndTheStepIsNamed) {
  Prepare("quiesce");
  absl::Status waited = stream_->WaitPinned();
  EXPECT_EQ(waited.code(), absl::StatusCode::kDeadlineExceeded) << waited;
  EXPECT_THAT(std::string(waited.message()), HasSubstr("in step quiesce"));
}

TEST_F(CaptureStreamTest, ASessionThatBeginsOneStepAfterTheOtherHasAllTheTimeItTakes) {
  Prepare("quiesce");
  uint64_t asked = 0;
  // Asked each time that it was silent for long enough to be given up.
  absl::Status waited = stream_->WaitPinned([&] {
    if (++asked == kRounds) SayPinned();
    if (asked >= kRounds) return asked;  // Until that has come.
    const uint64_t before = steps_;
    SayStep("quiesce");
    while (steps_ == before) absl::SleepFor(kSilence / 10);
    return uint64_t{0};
  });
  EXPECT_TRUE(waited.ok()) << waited;
  EXPECT_GE(asked, kRounds);
}

TEST_F(CaptureStreamTest, ASessionWhoseMemoryComesMayStayInItsStep) {
  Prepare("save_state");
  uint64_t bytes = 0;
  absl::Status waited = stream_->WaitPinned([&] {
    if (++bytes == kRounds) SayPinned();
    return bytes;
  });
  EXPECT_TRUE(waited.ok()) << waited;
  EXPECT_GE(bytes, kRounds);
}

}  // namespace
}  // namespace still::snapshot
