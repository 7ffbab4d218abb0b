#include "guest-agent/mount_table.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::agent {
namespace {

using ::testing::HasSubstr;

TEST(MountTableTest, ReadsEveryFieldOfTheManPagesExample) {
  auto mounts =
      ParseMountTable("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n");
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  ASSERT_EQ(mounts->size(), 1u);
  const MountEntry& mount = mounts->front();
  EXPECT_EQ(mount.mount_id, 36);
  EXPECT_EQ(mount.parent_id, 35);
  EXPECT_EQ(mount.device, (DeviceId{98, 0}));
  EXPECT_EQ(mount.root, "/mnt1");
  EXPECT_EQ(mount.mount_point, "/mnt2");
  EXPECT_EQ(mount.fs_type, "ext3");
  EXPECT_EQ(mount.source, "/dev/root");
  EXPECT_EQ(mount.super_options, "rw,errors=continue");
  EXPECT_FALSE(mount.read_only_superblock);
}

TEST(MountTableTest, SpacesAndLineBreaksInNamesAreDecoded) {
  auto mounts = ParseMountTable("1 0 8:1 / /a\\040b\\011c\\012d\\134e rw - ext4 /dev/x\\040y rw\n");
  ASSERT_TRUE(mounts.ok());
  EXPECT_EQ(mounts->front().mount_point, "/a b\tc\nd\\e");
  EXPECT_EQ(mounts->front().source, "/dev/x y");
}

TEST(MountTableTest, EscapesThatAreNoneAreKept) {
  EXPECT_EQ(DecodeOctalEscapes("\\04"), "\\04");
  EXPECT_EQ(DecodeOctalEscapes("\\088"), "\\088");
  EXPECT_EQ(DecodeOctalEscapes("\\777"), "\\777");
  EXPECT_EQ(DecodeOctalEscapes("\\"), "\\");
  EXPECT_EQ(DecodeOctalEscapes("\\377"), "\377");
}

TEST(MountTableTest, OnlyTheSuperblocksOwnReadOnlyFlagCounts) {
  auto mounts = ParseMountTable(
      "1 0 8:1 / /bind ro,relatime - ext4 /dev/a rw\n"
      "2 0 8:2 / /super rw - ext4 /dev/b ro,seclabel\n"
      "3 0 8:3 / /named rw - ext4 /dev/c rw,rootcontext=ro\n");
  ASSERT_TRUE(mounts.ok());
  EXPECT_FALSE((*mounts)[0].read_only_superblock);
  EXPECT_TRUE((*mounts)[1].read_only_superblock);
  EXPECT_FALSE((*mounts)[2].read_only_superblock);
}

TEST(MountTableTest, AnEmptySourceAndOptionsWithSpacesAreUnderstood) {
  auto mounts = ParseMountTable(
      "1 0 0:31 / /empty rw - tmpfs  rw,size=4k\n"
      "2 0 0:32 / /odd rw - weird src rw,name=a b - c\n");
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ((*mounts)[0].source, "");
  EXPECT_EQ((*mounts)[0].super_options, "rw,size=4k");
  EXPECT_EQ((*mounts)[1].super_options, "rw,name=a b - c");
}

TEST(MountTableTest, ADamagedLineIsNamed) {
  for (const char* line : {"nonsense", "1 0 8:1 / /a rw ext4 /dev/a rw", "x 0 8:1 / /a rw - ext4 a rw",
                           "1 0 81 / /a rw - ext4 a rw", "1 0 8:1 /  rw - ext4 a rw", "1 0 8:1 / /a rw - ext4 a"}) {
    auto mounts = ParseMountTable(absl::StrCat("1 0 8:1 / / rw - ext4 /dev/a rw\n", line, "\n"));
    EXPECT_EQ(mounts.status().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_THAT(mounts.status().message(), HasSubstr("line 2"));
  }
}

TEST(MountTableTest, EndlessTablesAreRefused) {
  std::string line = "1 0 8:1 / / rw - ext4 a rw\n";
  std::string many;
  for (size_t i = 0; i <= kMaxMounts; ++i) many += line;
  EXPECT_EQ(ParseMountTable(many).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ParseMountTable(std::string(kMaxMountTableBytes + 1, 'x')).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(MountTableTest, OptionValuesAreFoundByTheirWholeName) {
  EXPECT_EQ(MountOption("rw,lowerdir=/l,upperdir=/u,workdir=/w", "upperdir"), "/u");
  EXPECT_EQ(MountOption("rw,xupperdir=/u", "upperdir"), "");
  EXPECT_EQ(MountOption("upperdir", "upperdir"), "");
}

}  // namespace
}  // namespace still::agent
