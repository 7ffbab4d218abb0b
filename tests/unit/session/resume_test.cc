// Resume of SessionControl: the way out for a machine that was left paused, and for no other.
#include "tests/unit/session/control_fixture.h"

namespace still::session {
namespace {

class ResumeTest : public testing::ControlFixture {
 protected:
  void Start(bool paused) { StartWith({.directory = directory_, .paused = paused}); }

  grpc::Status Resume(bool* was_paused) {
    grpc::ClientContext context;
    sessionpb::ResumeResponse response;
    grpc::Status status = stub_->Resume(&context, {}, &response);
    *was_paused = response.was_paused();
    return status;
  }
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
  sessionpb::BeginCaptureRequest request;
  request.set_quiesce(sessionpb::QUIESCE_OFF);
  ASSERT_NO_FATAL_FAILURE(Begin(request));
  bool was_paused = false;
  EXPECT_EQ(Resume(&was_paused).error_code(), grpc::StatusCode::FAILED_PRECONDITION);

  End();
  EXPECT_TRUE(Resume(&was_paused).ok());
  EXPECT_FALSE(was_paused);
}

}  // namespace
}  // namespace still::session
