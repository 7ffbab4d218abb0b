// How a QEMU that cannot run, or ends by itself, shows.
#include <stdlib.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class QemuStart : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-start-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    disk_ = JoinPath(directory_, "disk.raw");
    ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, ResettingGuest()).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  session::VmConfig Config() const {
    session::VmConfig config{
        .name = "start", .directory = directory_, .accelerator = TestAccelerator(), .memory_bytes = kGuestMemoryBytes};
    config.disks.push_back({.name = "vda", .path = disk_, .format = "raw"});
    return config;
  }

  // One line that names what is wrong.
  static void ExpectError(const absl::StatusOr<std::unique_ptr<session::Vm>>& vm, absl::StatusCode code,
                          const std::string& text) {
    EXPECT_EQ(vm.status().code(), code) << vm.status();
    EXPECT_THAT(std::string(vm.status().message()), HasSubstr(text));
    EXPECT_THAT(std::string(vm.status().message()), Not(HasSubstr("\n")));
  }

  std::string directory_;
  std::string disk_;
};

TEST_F(QemuStart, AMissingDiskOrKernelIsNamed) {
  session::VmConfig config = Config();
  config.disks[0].path = JoinPath(directory_, "nothing.raw");
  ExpectError(session::StartQemu(config), absl::StatusCode::kNotFound, "disk vda");
  config = Config();
  config.kernel = JoinPath(directory_, "vmlinux");
  ExpectError(session::StartQemu(config), absl::StatusCode::kNotFound, "kernel");
  config = Config();
  config.disks[0].path = directory_;
  ExpectError(session::StartQemu(config), absl::StatusCode::kInvalidArgument, "is a directory");
}

TEST_F(QemuStart, AnImageOfAnotherFormatIsRefusedInQemusWords) {
  session::VmConfig config = Config();
  config.disks[0].format = "qcow2";
  ExpectError(session::StartQemu(config), absl::StatusCode::kFailedPrecondition, "qcow2");
}

TEST_F(QemuStart, ADiskInUseIsSaidToBe) {
  ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, CountingGuest()).ok());
  auto first = session::StartQemu(Config());
  ASSERT_TRUE(first.ok()) << first.status();
  ExpectError(session::StartQemu(Config()), absl::StatusCode::kFailedPrecondition, "in use by another process");
}

TEST_F(QemuStart, AMissingProgramIsNamed) {
  ExpectError(session::StartQemuWith({.binary = "/nowhere/qemu"}, Config()), absl::StatusCode::kNotFound,
              "/nowhere/qemu");
}

TEST_F(QemuStart, AProgramThatIsNoHypervisorIsNotWaitedFor) {
  auto vm = session::StartQemuWith({.binary = "true"}, Config());
  EXPECT_EQ(vm.status().code(), absl::StatusCode::kUnavailable) << vm.status();
}

TEST_F(QemuStart, TheRunningMachineIsDescribed) {
  ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, CountingGuest()).ok());
  session::VmConfig config = Config();
  config.machine_type = "q35";  // An alias: what is remembered must have a version.
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  const session::VmDescription& description = (*vm)->description();
  EXPECT_TRUE(absl::StartsWith(description.machine_type, "pc-q35-")) << description.machine_type;
  EXPECT_GE(description.version.find('.'), 1u);
  EXPECT_EQ(description.firmware, "seabios");
  EXPECT_EQ(description.ram_block, "pc.ram");
  EXPECT_GT(description.pid, 0);
  const session::Capabilities& can = (*vm)->capabilities();
  EXPECT_TRUE(can.memory && can.disk_pin && can.incremental_disk);
  EXPECT_NE(can.background_memory, !can.background_memory_reason.empty()) << can.background_memory_reason;
}

TEST_F(QemuStart, AGuestThatEndsItselfIsToldFromOneThatWasKilled) {
  ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, EndingGuest()).ok());
  session::VmConfig config = Config();
  // Holds the guest until everything about it has been asked: it would be gone too soon.
  config.nics.push_back({.name = "net0", .kind = "none", .link_up = false});
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_TRUE((*vm)->WaitForExit().ok());
  EXPECT_TRUE((*vm)->guest_shut_down());
}

TEST_F(QemuStart, AGuestThatResetsGoesOnInTheSameMachine) {
  ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, ResettingGuest()).ok());
  absl::Mutex mutex;
  int resets = 0;
  session::VmConfig config = Config();
  config.on_reset = [&] {
    absl::MutexLock lock(&mutex);
    ++resets;
  };
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  {
    absl::MutexLock lock(&mutex);
    auto several = [&] { return resets >= 3; };
    EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&several), absl::Minutes(2)));
  }
  EXPECT_FALSE((*vm)->IsPaused().value_or(true));
  (*vm)->Kill();
  (*vm)->WaitForExit();
  EXPECT_FALSE((*vm)->guest_shut_down());
  vm->reset();  // Before what it tells of its guest.
}

TEST_F(QemuStart, LinksGoUpAndDown) {
  ASSERT_TRUE(MakeRawDisk(disk_, 1 << 20, CountingGuest()).ok());
  session::VmConfig config = Config();
  config.nics.push_back({.name = "net0", .mac = "52:54:00:12:34:56", .kind = "user", .link_up = false});
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_FALSE((*vm)->IsPaused().value_or(true)) << "it was only held until the link was down";
  EXPECT_TRUE((*vm)->SetLink("net0", true).ok());
  EXPECT_TRUE((*vm)->SetLink("net0", false).ok());
  EXPECT_EQ((*vm)->SetLink("net9", true).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace still::testing
