#include "guest-agent/freeze_plan.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

MountSurvey Survey(absl::string_view text, std::map<DeviceId, std::set<DeviceId>> lies_on = {}) {
  auto mounts = ParseMountTable(text);
  EXPECT_TRUE(mounts.ok()) << mounts.status();
  return {*std::move(mounts), std::move(lies_on)};
}

// The mount point that stands for each file system, in freezing order.
std::vector<std::string> Order(const FreezePlan& plan) {
  std::vector<std::string> order;
  for (const PlannedFileSystem& fs : plan.file_systems) order.push_back(fs.mounts.front().mount_point);
  return order;
}

std::map<std::string, pb::SkippedMount::Reason> Reasons(const FreezePlan& plan) {
  std::map<std::string, pb::SkippedMount::Reason> reasons;
  for (const pb::SkippedMount& skipped : plan.skipped) reasons[skipped.mount_point()] = skipped.reason();
  return reasons;
}

constexpr char kUsual[] =
    "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n"
    "2 1 0:5 / /proc rw - proc proc rw\n"
    "3 1 0:24 / /run rw - tmpfs tmpfs rw\n"
    "4 1 254:2 / /boot rw - ext2 /dev/vda2 rw\n"
    "5 1 254:16 / /data rw - xfs /dev/vdb rw\n"
    "6 1 11:0 / /cd ro - iso9660 /dev/sr0 ro\n";

TEST(FreezePlanTest, TheNewestMountIsFrozenFirst) {
  auto plan = MakeFreezePlan(Survey(kUsual), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/data", "/boot", "/"));
  EXPECT_EQ(Reasons(*plan),
            (std::map<std::string, pb::SkippedMount::Reason>{{"/proc", pb::SkippedMount::NO_BLOCK_DEVICE},
                                                             {"/run", pb::SkippedMount::NO_BLOCK_DEVICE},
                                                             {"/cd", pb::SkippedMount::READ_ONLY}}));
}

TEST(FreezePlanTest, AGuestWithNothingToFreezeIsACorrectAnswer) {
  auto plan = MakeFreezePlan(Survey("1 0 0:1 / / rw - tmpfs tmpfs rw\n2 1 0:30 / /host rw - virtiofs host rw\n"), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->file_systems, IsEmpty());
  EXPECT_EQ(plan->skipped.size(), 2u);
}

TEST(FreezePlanTest, BindMountsAreOneFileSystemShownByItsWholeMount) {
  auto plan = MakeFreezePlan(Survey("1 0 8:1 /var/lib /chroot/lib rw - ext4 /dev/sda1 rw\n"
                                    "2 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
                                    "3 2 8:1 /etc/hosts /c/hosts ro - ext4 /dev/sda1 rw\n"),
                             {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/"));
  EXPECT_EQ(plan->file_systems[0].mounts.size(), 3u);
}

TEST(FreezePlanTest, BtrfsSubvolumesAreOneFileSystemWithoutABlockDeviceOfItsOwn) {
  auto plan = MakeFreezePlan(Survey("1 0 0:30 /@ / rw - btrfs /dev/vda1 rw,subvol=/@\n"
                                    "2 1 0:30 /@home /home rw - btrfs /dev/vda1 rw,subvol=/@home\n"
                                    "3 1 0:31 / /other rw - btrfs /dev/vdb rw\n"),
                             {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/other", "/"));
  EXPECT_EQ(plan->file_systems[1].mounts.size(), 2u);
  EXPECT_EQ(plan->file_systems[1].device_name, "/dev/vda1");
}

constexpr char kOverlay[] =
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "2 1 8:2 / /docker rw - xfs /dev/sda2 rw\n"
    "3 1 0:40 / /merged rw - overlay overlay rw,lowerdir=/docker/l,upperdir=/docker/u,workdir=/docker/w\n"
    "4 1 0:41 / /readonly ro - overlay overlay ro,lowerdir=/a:/b\n";

TEST(FreezePlanTest, AnOverlayIsFrozenThroughTheFileSystemUnderItsUpperDirectory) {
  auto plan = MakeFreezePlan(Survey(kOverlay), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/docker", "/"));
  EXPECT_EQ(plan->skipped[0].mount_point(), "/merged");
  EXPECT_THAT(plan->skipped[0].detail(), HasSubstr("/docker (xfs)"));
  // Asked for by name, it stands for what is under it.
  plan = MakeFreezePlan(Survey(kOverlay), {"/merged"});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/docker"));
}

TEST(FreezePlanTest, WhatLiesOnAnotherIsFrozenBeforeItWhateverTheMountOrder) {
  // /b is a later bind mount of what /image lies on; its first mount is gone from the table.
  constexpr char kTable[] =
      "20 1 7:0 / /image rw - ext4 /dev/loop0 rw\n"
      "30 1 8:1 / /b rw - ext4 /dev/sda1 rw\n";
  DeviceId loop{7, 0}, disk{8, 1};
  auto unaware = MakeFreezePlan(Survey(kTable), {});
  ASSERT_TRUE(unaware.ok());
  EXPECT_THAT(Order(*unaware), ElementsAre("/b", "/image"));
  auto plan = MakeFreezePlan(Survey(kTable, {{loop, {disk}}}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/image", "/b"));
}

TEST(FreezePlanTest, ChainsAreFrozenFromTheTopAndCyclesEnd) {
  constexpr char kTable[] =
      "1 0 7:2 / /top rw - ext4 /dev/loop2 rw\n"
      "2 0 7:1 / /middle rw - ext4 /dev/loop1 rw\n"
      "3 0 8:1 / /bottom rw - ext4 /dev/sda1 rw\n";
  DeviceId top{7, 2}, middle{7, 1}, bottom{8, 1};
  auto plan = MakeFreezePlan(Survey(kTable, {{top, {middle}}, {middle, {bottom}}}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/top", "/middle", "/bottom"));
  plan = MakeFreezePlan(Survey(kTable, {{top, {middle}}, {middle, {top}}, {bottom, {bottom}}}), {});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->file_systems.size(), 3u);
}

TEST(FreezePlanTest, OnlyWhatIsAskedForAndShownByThatName) {
  auto plan = MakeFreezePlan(Survey("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
                                    "2 1 8:1 /srv /srv rw - ext4 /dev/sda1 rw\n"
                                    "3 1 8:2 / /data rw - ext4 /dev/sda2 rw\n"),
                             {"/srv/"});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(Order(*plan), ElementsAre("/srv"));
  EXPECT_EQ(Reasons(*plan),
            (std::map<std::string, pb::SkippedMount::Reason>{{"/data", pb::SkippedMount::NOT_REQUESTED}}));
}

TEST(FreezePlanTest, WhatIsNoMountPointIsNamed) {
  auto plan = MakeFreezePlan(Survey(kUsual), {"/data", "/nowhere"});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(plan.status().message(), HasSubstr("/nowhere"));
}

TEST(FreezePlanTest, AskingForWhatCannotFreezeIsReportedNotRefused) {
  auto plan = MakeFreezePlan(Survey(kUsual), {"/run", "/cd"});
  ASSERT_TRUE(plan.ok());
  EXPECT_THAT(plan->file_systems, IsEmpty());
  EXPECT_EQ(Reasons(*plan).at("/run"), pb::SkippedMount::NO_BLOCK_DEVICE);
  EXPECT_EQ(Reasons(*plan).at("/cd"), pb::SkippedMount::READ_ONLY);
}

TEST(FreezePlanTest, OfMountsOverOneAnotherAPathReachesTheLast) {
  MountSurvey survey = Survey("1 0 8:1 / /m rw - ext4 /dev/sda1 rw\n2 0 8:2 / /m rw - ext4 /dev/sda2 rw\n");
  auto plan = MakeFreezePlan(survey, {"/m"});
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->file_systems.size(), 1u);
  EXPECT_EQ(plan->file_systems[0].device, (DeviceId{8, 2}));
  EXPECT_EQ(MountOfPath(survey.mounts, "/m/file")->mount_id, 2);
  EXPECT_EQ(MountOfPath(survey.mounts, "/mm"), nullptr);
}

}  // namespace
}  // namespace still::agent
