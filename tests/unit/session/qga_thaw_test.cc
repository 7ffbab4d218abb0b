// A restored session whose guest is frozen, with nobody in it but the QEMU guest agent.
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <optional>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/restore_launch.h"
#include "tests/support/fake_vm.h"
#include "tests/unit/session/fake_qga.h"

namespace still::session {
namespace {

using ::still::testing::FakeQga;
using ::still::testing::FakeVm;
using ::still::testing::FakeVmOptions;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const auto kNobodyListens = [](const std::string&) {};

class QgaThawTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-qga-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override {
    session_.reset();
    qga_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  // With saved memory, frozen, without vsock. `answer`: the QEMU guest agent's, or null: the machine has no port to one.
  void Start(std::function<std::string(const std::string&)> answer) {
    sessionpb::SessionConfig config;
    config.set_name("copy");
    config.set_kernel(JoinPath(directory_, "kernel"));
    config.mutable_machine()->set_direct_kernel(true);
    config.mutable_machine()->set_vcpus(1);
    config.mutable_machine()->set_memory_bytes(64 << 20);
    config.set_vsock_backend(sessionpb::SessionConfig::OFF);
    config.set_agent_deadline_s(60);
    config.set_qga_port(answer != nullptr);
    config.mutable_restore()->set_thaw(true);
    config.mutable_restore()->set_device_state(JoinPath(directory_, "devices"));
    for (const std::string& file : {config.kernel(), config.restore().device_state()}) {
      ASSERT_TRUE(WriteFileAtomically(file, "not looked at").ok());
    }
    StartOptions options{.directory = directory_, .ram = OwnedFd(::memfd_create("ram", MFD_CLOEXEC))};
    options.start_vm = [this, answer](const VmConfig& vm) -> absl::StatusOr<std::unique_ptr<Vm>> {
      if (vm.qga_fd >= 0) qga_.emplace(OwnedFd(::dup(vm.qga_fd)), answer);
      return std::make_unique<FakeVm>(FakeVmOptions{.directory = directory_, .paused = true});
    };
    absl::StatusOr<std::unique_ptr<Session>> session = Session::Start(config, std::move(options));
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
  }

  std::string directory_;
  std::optional<FakeQga> qga_;
  std::unique_ptr<Session> session_;
};

TEST_F(QgaThawTest, ThawsTheGuestAndSaysSo) {
  ASSERT_NO_FATAL_FAILURE(Start([](const std::string&) { return "{\"return\": 2}\n"; }));
  absl::StatusOr<sessionpb::LaunchReport> report = LaunchRestored(*session_, kNobodyListens);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->warnings(), ElementsAre(HasSubstr("the QEMU guest agent thawed 2 file systems")));
  // The operator's way out goes there, too.
  EXPECT_EQ(session_->guest_thaw().Thaw(absl::Seconds(60))->thawed(), 2u);
}

TEST_F(QgaThawTest, AGuestThatNobodyCouldThawIsNotOffered) {
  ASSERT_NO_FATAL_FAILURE(Start([](const std::string&) { return "{\"error\": {}}\n"; }));
  const absl::Status failed = LaunchRestored(*session_, kNobodyListens).status();
  EXPECT_THAT(failed.message(), HasSubstr("no agent: the QEMU guest agent does not thaw"));
  EXPECT_EQ(session_->Wait().kind(), SessionEnd::FAILED_TO_START);
}

TEST_F(QgaThawTest, AMachineWithoutThePortAsksNobody) {
  ASSERT_NO_FATAL_FAILURE(Start(nullptr));
  EXPECT_EQ(LaunchRestored(*session_, kNobodyListens).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(qga_.has_value());
}

}  // namespace
}  // namespace still::session
