// Memory that can only be saved while the machine stands still: what becomes of it as the caller asked.
#include <unistd.h>

#include <thread>

#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "tests/unit/session/control_fixture.h"

namespace still::session {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

class MemoryPolicyTest : public testing::ControlFixture {
 protected:
  // A machine whose memory takes ten seconds.
  void Start() {
    StartWith({.directory = directory_,
               .capabilities = {.memory = true,
                                .background_memory_reason = "no userfaultfd",
                                .stopped_memory_pause = absl::Seconds(10),
                                .disk_pin = true}});
  }
  static sessionpb::BeginCaptureRequest Request(sessionpb::MemoryPolicy policy, uint32_t max_pause_ms) {
    sessionpb::BeginCaptureRequest request;
    request.set_quiesce(sessionpb::QUIESCE_OFF);
    request.set_memory(true);
    request.set_memory_policy(policy);
    request.set_max_pause_ms(max_pause_ms);
    return request;
  }
  // Takes the memory of a capture as soon as it is offered.
  void BeginAndTakeMemory(const sessionpb::BeginCaptureRequest& request) {
    std::thread reader([this] {
      const std::string path = JoinPath(directory_, "memory.sock");
      absl::StatusOr<OwnedFd> memory = absl::UnavailableError("not yet");
      for (int i = 0; i < 60'000 && !memory.ok(); ++i) {
        memory = ConnectUnix(path);
        Clock::Real().Sleep(absl::Milliseconds(1));
      }
      ASSERT_TRUE(memory.ok()) << memory.status();
      char buffer[1 << 16];
      while (::read(memory->get(), buffer, sizeof buffer) > 0) {
      }
    });
    Begin(request);
    if (pinned_.disks_size() == 0) context_.TryCancel();
    reader.join();
  }
};

TEST_F(MemoryPolicyTest, TriedItIsLeftOutAndTheSnapshotSaysWhy) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Begin(Request(sessionpb::MEMORY_TRY, 2000));
  EXPECT_EQ(prepared_.memory_socket(), "");
  EXPECT_THAT(prepared_.no_memory_reason(),
              AllOf(HasSubstr("no userfaultfd"), HasSubstr("about 10s"), HasSubstr("2s")));
  EXPECT_EQ(pinned_.windows().no_memory_reason(), prepared_.no_memory_reason());
  EXPECT_EQ(pinned_.windows().memory_method(), "none");
  ASSERT_EQ(pinned_.disks_size(), 1);
  End();
}

// By callers of before the policy, too.
TEST_F(MemoryPolicyTest, RequiredItFailsBeforeAnythingIsTouched) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Begin(Request(sessionpb::MEMORY_POLICY_UNSPECIFIED, 0));
  EXPECT_EQ(failed_.code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(failed_.message(), AllOf(HasSubstr("no userfaultfd"), HasSubstr("--memory stop")));
  EXPECT_THAT(vm_->calls(), Not(Contains("PrepareCapture")));
}

TEST_F(MemoryPolicyTest, WhereItFitsItIsSaved) {
  ASSERT_NO_FATAL_FAILURE(Start());
  BeginAndTakeMemory(Request(sessionpb::MEMORY_TRY, 11'000));
  EXPECT_EQ(prepared_.no_memory_reason(), "");
  EXPECT_EQ(pinned_.windows().memory_method(), "stopped");
  ASSERT_EQ(pinned_.disks_size(), 1) << failed_.message();
  End();
}

TEST_F(MemoryPolicyTest, AskedForItIsSavedWhateverItTakes) {
  ASSERT_NO_FATAL_FAILURE(Start());
  BeginAndTakeMemory(Request(sessionpb::MEMORY_STOP, 2000));
  EXPECT_EQ(prepared_.no_memory_reason(), "");
  EXPECT_EQ(pinned_.windows().memory_method(), "stopped");
  ASSERT_EQ(pinned_.disks_size(), 1) << failed_.message();
  End();
}

TEST_F(MemoryPolicyTest, APauseOfHoursIsRefused) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Begin(Request(sessionpb::MEMORY_TRY, 3'600'000));
  EXPECT_EQ(failed_.code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace still::session
