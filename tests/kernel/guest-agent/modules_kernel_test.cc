// File systems and mappings that a kernel may have as modules, or not at all.
#include <fcntl.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernel/guest-agent/freeze_kernel_fixture.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;

class ModulesKernelTest : public FreezeKernelTest {};

// The one that most guests have, as /boot/efi.
TEST_F(ModulesKernelTest, AVfatThatNobodyWritesToIsCleanAndOneWithAnOpenFileIsNot) {
  if (!absl::StrContains(ReadFile("/proc/filesystems", 1 << 16).value_or(""), "\tvfat\n")) {
    GTEST_SKIP() << "this kernel has no vfat";
  }
  LoopDevice device("efi.img");
  RunTool({"mkfs.vfat", device.path()});
  sandbox->MakeDirectory("efi");
  sandbox->Mount({device.path(), At("efi")});
  ASSERT_TRUE(WriteFileAtomically(At("efi/grub.cfg"), "set timeout=1\n").ok());
  auto state = [&](const std::string& token) {
    auto frozen = Quiesce(token);
    EXPECT_TRUE(frozen.ok()) << frozen.status();
    const pb::Disk* disk = frozen.ok() ? FindDisk(*frozen, device.path()) : nullptr;
    Thaw(token);
    return disk == nullptr || disk->uses_size() != 1 ? pb::DiskUse::STATE_UNSPECIFIED : disk->uses(0).state();
  };
  EXPECT_EQ(state("t"), pb::DiskUse::CLEAN);
  absl::StatusOr<OwnedFd> open = OpenFile(At("efi/grub.cfg"), O_RDWR);
  ASSERT_TRUE(open.ok());
  EXPECT_EQ(state("u"), pb::DiskUse::NOT_COVERED);
  open->Reset();
  EXPECT_EQ(state("v"), pb::DiskUse::CLEAN);
  sandbox->Unmount({At("efi")});
}

TEST_F(ModulesKernelTest, AFileSystemOnAMappingIsFrozenAndCountsForTheDiskUnderIt) {
  if (!PathExists("/dev/mapper/control")) GTEST_SKIP() << "this kernel has no device mapper";
  LoopDevice device("dm.img");
  const std::string name = absl::StrCat("still-test-", ::getpid());
  RunTool({"dmsetup", "create", name, "--table", absl::StrCat("0 2048 linear ", device.path(), " 0")});
  const std::string node = absl::StrCat("/dev/mapper/", name);
  RunTool({"mkfs.ext4", "-q", "-O", "^has_journal", node});
  sandbox->MakeDirectory("mapped");
  sandbox->Mount({node, At("mapped")});
  auto frozen = Quiesce("t");
  EXPECT_TRUE(frozen.ok()) << frozen.status();
  if (frozen.ok()) {
    EXPECT_THAT(Frozen(*frozen), ElementsAre(At("mapped")));
    const pb::Disk* disk = FindDisk(*frozen, device.path());
    EXPECT_TRUE(disk != nullptr && disk->uses_size() == 1 && disk->uses(0).state() == pb::DiskUse::FROZEN &&
                absl::StartsWith(disk->uses(0).device(), "dm-"))
        << frozen->DebugString();
    EXPECT_EQ(Thaw("t").thawed(), 1u);
  }
  sandbox->Unmount({At("mapped")});
  RunTool({"dmsetup", "remove", "--retry", name});
}

}  // namespace
}  // namespace still::agent
