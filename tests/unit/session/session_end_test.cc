// How a session says that it ended: what its guest did, what its user did, and what nobody meant are three things.
#include <stdlib.h>

#include <functional>
#include <memory>
#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/describe_session.h"
#include "session/session.h"
#include "session/session_config.h"
#include "tests/support/fake_vm.h"

namespace still::session {
namespace {

using ::still::testing::FakeVm;
using ::still::testing::FakeVmOptions;
using ::testing::HasSubstr;

class SessionEndTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-end-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    sessionpb::SessionConfig config;
    config.set_name("web");
    config.set_kernel(JoinPath(directory_, "kernel"));
    ASSERT_TRUE(WriteFileAtomically(config.kernel(), "not looked at").ok());
    config.mutable_machine()->set_direct_kernel(true);
    config.mutable_machine()->set_vcpus(1);
    config.mutable_machine()->set_memory_bytes(64 << 20);
    config.set_vsock_backend(sessionpb::SessionConfig::OFF);
    StartOptions options{.directory = directory_};
    options.start_vm = [this](const VmConfig& config) -> absl::StatusOr<std::unique_ptr<Vm>> {
      reset_ = config.on_reset;
      auto vm = std::make_unique<FakeVm>(FakeVmOptions{.directory = directory_});
      vm_ = vm.get();
      return vm;
    };
    absl::StatusOr<std::unique_ptr<Session>> session = Session::Start(config, std::move(options));
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
  }
  void TearDown() override {
    session_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  std::string directory_;
  FakeVm* vm_ = nullptr;  // Of session_.
  std::function<void()> reset_;
  std::unique_ptr<Session> session_;
};

// What a restore compares with its host (restore_check_test).
TEST_F(SessionEndTest, TheManifestKeepsTheGuestsProcessorAndTheFrequencyOfItsCounter) {
  EXPECT_THAT(session_->machine().guest_cpu_features(), ::testing::ElementsAre("avx2"));
  EXPECT_EQ(session_->machine().tsc_hz(), 2'900'000'000u);
}

TEST_F(SessionEndTest, AGuestThatPowersOff) {
  vm_->PowerOff();
  EXPECT_EQ(session_->Wait().kind(), SessionEnd::POWERED_OFF);
  EXPECT_GT(session_->Wait().at_unix_ns(), 0);
  EXPECT_TRUE(EndedOnPurpose(session_->Wait()));
}

TEST_F(SessionEndTest, AHypervisorThatCrashes) {
  vm_->Crash();
  EXPECT_EQ(session_->Wait().kind(), SessionEnd::CRASHED);
  EXPECT_THAT(DescribeEnd(session_->Wait()), HasSubstr("crashed: the hypervisor ended by itself"));
  EXPECT_FALSE(EndedOnPurpose(session_->Wait()));
}

TEST_F(SessionEndTest, AUserWhoStopsItIsToldWhetherTheGuestWas) {
  session_->Stop();
  EXPECT_EQ(session_->Wait().kind(), SessionEnd::STOPPED);
  EXPECT_EQ(DescribeEnd(session_->Wait()), "stopped by force");
  session_->Stop();
  vm_->PowerOff();
  EXPECT_EQ(session_->Wait().kind(), SessionEnd::STOPPED) << "the first end is the one";
}

TEST_F(SessionEndTest, ARebootIsNoEndAndIsCounted) {
  EXPECT_EQ(DescribeSession(*session_).reboots(), 0u);
  reset_();
  reset_();
  const sessionpb::DescribeResponse description = DescribeSession(*session_);
  EXPECT_EQ(description.reboots(), 2u);
  EXPECT_GT(description.last_reboot_unix_ns(), 0);
  EXPECT_EQ(description.state(), sessionpb::DescribeResponse::RUNNING);
  session_.reset();
  reset_();  // The hypervisor may tell of it later than anybody listens.
}

}  // namespace
}  // namespace still::session
