// A real QEMU whose disk's file system is full: its guest is held, told with the reason, and goes on when there is room,
// also while a capture is being drained.
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <memory>

#include "absl/time/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "session/vm_keeper.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/kernel/guest-agent/sandbox.h"
#include "tests/support/test_accelerator.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr off_t kDiskBytes = 1 << 20;

std::unique_ptr<agent::Sandbox>& TheSandbox() {
  static std::unique_ptr<agent::Sandbox> sandbox;
  return sandbox;
}
std::string& SkipReason() {
  static std::string reason;
  return reason;
}

// Before gtest or anybody else has threads.
class SandboxEnvironment : public ::testing::Environment {
 public:
  void SetUp() override { TheSandbox() = agent::Sandbox::Make(SkipReason()); }
  void TearDown() override { TheSandbox().reset(); }
};
const auto* const kEnvironment = ::testing::AddGlobalTestEnvironment(new SandboxEnvironment);

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    TheSandbox()->Alive();
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class NoSpaceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (TheSandbox() == nullptr) GTEST_SKIP() << SkipReason();
    TheSandbox()->MakeDirectory("full");
    TheSandbox()->MakeDirectory("session");
    TheSandbox()->Mount({"-t", "tmpfs", "-o", "size=4m", "none", *TheSandbox() / "full"});
    VmConfig config{.name = "full",
                    .directory = *TheSandbox() / "session",
                    .accelerator = testing::TestAccelerator(),
                    .memory_bytes = testing::kGuestMemoryBytes};
    config.disks.push_back({.name = "vda", .path = *TheSandbox() / "session/vda.raw", .format = "raw"});
    config.disks.push_back({.name = "vdb", .path = *TheSandbox() / "full/vdb.raw", .format = "raw"});
    ASSERT_TRUE(testing::MakeRawDisk(config.disks[0].path, kDiskBytes, testing::CountingGuest()).ok());
    ASSERT_TRUE(testing::MakeRawDisk(config.disks[1].path, kDiskBytes, "").ok());
    auto vm = StartQemu(config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    keeper_ = std::make_unique<VmKeeper>(*vm_, nullptr, "");
    keeper_->Watch();
    ASSERT_TRUE(GetsOn()) << "the guest does not boot";
  }
  void TearDown() override {
    keeper_.reset();
    vm_.reset();
    if (TheSandbox() != nullptr) TheSandbox()->ThawAndUnmountAll();
  }

  static uint64_t Progress() { return FileSize(*TheSandbox() / "session/console.log").value_or(0); }
  static bool GetsOn() {
    const uint64_t before = Progress();
    return Eventually([&] { return Progress() > before + 3; });
  }
  // The disk lies in a sparse file: what it loses it cannot get back.
  static void Fill() {
    auto filler = OpenFile(*TheSandbox() / "full/filler", O_RDWR | O_CREAT);
    ASSERT_TRUE(filler.ok()) << filler.status();
    auto disk = OpenFile(*TheSandbox() / "full/vdb.raw", O_RDWR);
    ASSERT_TRUE(disk.ok()) << disk.status();
    const std::string block(64 << 10, 'x');
    auto fill = [&] {
      while (::write(filler->get(), block.data(), block.size()) > 0) {
      }
    };
    fill();
    ASSERT_EQ(::fallocate(disk->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kDiskBytes), 0);
    fill();
  }
  static void MakeRoom() { ASSERT_TRUE(RemoveFile(*TheSandbox() / "full/filler").ok()); }
  void ExpectHeld() {
    EXPECT_TRUE(Eventually([&] { return !keeper_->trouble().empty(); }));
    EXPECT_EQ(keeper_->trouble(), "the guest is held: disk vdb cannot be written: No space left on device");
    EXPECT_TRUE(vm_->IsPaused().value_or(false) || Eventually([&] { return vm_->IsPaused().value_or(false); }));
  }

  std::unique_ptr<Vm> vm_;
  std::unique_ptr<VmKeeper> keeper_;
};

TEST_F(NoSpaceTest, AGuestWithoutSpaceIsHeldAndGoesOnWhenThereIsRoom) {
  ASSERT_NO_FATAL_FAILURE(Fill());
  ExpectHeld();
  auto capture = vm_->PrepareCapture({.memory = false}, OwnedFd());
  EXPECT_THAT(std::string(capture.status().message()), HasSubstr("cannot be read or written"));
  ASSERT_NO_FATAL_FAILURE(MakeRoom());
  EXPECT_TRUE(GetsOn());
  EXPECT_TRUE(Eventually([&] { return keeper_->trouble().empty(); }));
}

TEST_F(NoSpaceTest, AlsoWhileACaptureIsBeingDrained) {
  auto capture = vm_->PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  {
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
    ASSERT_TRUE((*capture)->SaveStateAndResume(*std::move(paused)).ok());
  }
  ASSERT_TRUE((*capture)->ExportDisks().ok());
  ASSERT_TRUE(GetsOn());
  ASSERT_NO_FATAL_FAILURE(Fill());
  ExpectHeld();
  ASSERT_NO_FATAL_FAILURE(MakeRoom());
  EXPECT_TRUE(GetsOn()) << "a drain and a hold wait for each other";
  EXPECT_TRUE((*capture)->Release(true).ok());
  EXPECT_TRUE(GetsOn());
}

}  // namespace
}  // namespace still::session
