// Disks of an adopted process on file systems that share extents: pinned by a clone, for which the process stands still
// no longer than for its dirty pages, whatever the disk's size.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <optional>

#include "base/check.h"
#include "base/file.h"
#include "gtest/gtest.h"
#include "session/hypervisor/process/process_vm.h"
#include "tests/contract/hypervisor/lockstep_writer.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/kernel/guest-agent/sandbox.h"

namespace still::session {
namespace {

using ::still::testing::LockstepWriter;
using ::still::testing::NewestLockstepRecord;

constexpr off_t kDiskBytes = 8 << 20;

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

class ProcessReflink : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (TheSandbox() == nullptr) GTEST_SKIP() << SkipReason();
    TheSandbox()->Alive();
    TheSandbox()->MountNew(GetParam(), "image", "disks");
    MakeDirectories(*TheSandbox() / "session").IgnoreError();
    for (const char* name : {"vda", "vdb"}) {
      auto file = OpenFile(Path(name), O_RDWR | O_CREAT | O_EXCL);
      ASSERT_TRUE(file.ok()) << file.status();
      ASSERT_EQ(::ftruncate(file->get(), kDiskBytes), 0);
    }
    writer_.emplace(Path("vda"), Path("vdb"));
    ASSERT_TRUE(writer_->GetsOn());
  }
  void TearDown() override {
    writer_.reset();
    if (TheSandbox() != nullptr) TheSandbox()->ThawAndUnmountAll();
  }
  static std::string Path(const std::string& name) { return *TheSandbox() / ("disks/" + name); }

  std::optional<LockstepWriter> writer_;
};

TEST_P(ProcessReflink, APinIsACloneOfOneInstantAndLeavesNothing) {
  VmConfig config{.name = "process", .directory = *TheSandbox() / "session"};
  config.adopt_pid = writer_->pid();
  for (const char* name : {"vda", "vdb"}) config.disks.push_back({.name = name, .path = Path(name), .format = "raw"});
  auto vm = AdoptProcess(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_TRUE((*vm)->capabilities().disk_pin);
  for (int round = 0; round < 3; ++round) {
    TheSandbox()->Alive();
    auto capture = (*vm)->PrepareCapture({.memory = false, .max_pause = absl::Seconds(30)}, OwnedFd());
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    uint64_t at_the_point = writer_->written();
    absl::Status pinned = (*capture)->PinDisks(*paused);
    ASSERT_TRUE(pinned.ok()) << pinned;
    ASSERT_TRUE((*capture)->SaveStateAndResume(*std::move(paused)).ok());
    ASSERT_TRUE(writer_->GetsOn());
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    uint64_t newest[2];
    for (size_t i = 0; i < 2; ++i) {
      auto image = ::still::testing::ReadExport((*exports)[i]);
      ASSERT_TRUE(image.ok()) << image.status();
      newest[i] = NewestLockstepRecord(*image);
    }
    EXPECT_GE(newest[0], at_the_point);
    EXPECT_LE(newest[1], newest[0]);
    EXPECT_LE(newest[0], newest[1] + 1);
    EXPECT_LE(newest[0], at_the_point + 1);
    EXPECT_TRUE((*capture)->Release(true).ok());
  }
  EXPECT_EQ(ListDirectory(*TheSandbox() / "disks").value_or(std::vector<std::string>()).size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(FileSystems, ProcessReflink, ::testing::Values("btrfs", "xfs"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace still::session
