#include "guest-agent/block_topology.h"

#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

class BlockTopologyTest : public ::testing::Test {
 protected:
  void Put(const std::string& path, const std::string& content) {
    std::string full = directory_ / path;
    ASSERT_TRUE(MakeDirectories(full.substr(0, full.rfind('/'))).ok());
    ASSERT_TRUE(WriteFileAtomically(full, content).ok());
  }
  std::set<DeviceId> LiesOn(const std::string& table, DeviceId device) {
    auto mounts = ParseMountTable(table);
    EXPECT_TRUE(mounts.ok()) << mounts.status();
    TopologySources sources{.sysfs = directory_.path(), .loop_backing = [this](const DeviceId&) { return backing_; }};
    topology_ = FindDependencies(*mounts, sources);
    return topology_.lies_on[device];
  }
  absl::StatusOr<DeviceId> backing_ = absl::NotFoundError("not told");  // What the loop driver says.
  BlockTopology topology_;
  TempDir directory_;
};

TEST_F(BlockTopologyTest, ALoopDeviceOverANetworkOrOverWhatDoesNotAnswerIsLeftAlone) {
  constexpr char kRemote[] =
      "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "2 1 0:50 / /net rw - nfs4 server:/export rw\n"
      "3 1 7:0 / /loop rw - ext4 /dev/loop0 rw\n";
  Put("dev/block/7:0/loop/backing_file", "/net/disk.img\n");
  EXPECT_TRUE(LiesOn(kRemote, {7, 0}).empty());
  EXPECT_EQ(topology_.unanswering[(DeviceId{7, 0})], "its data are on /net (nfs4)");
  backing_ = absl::DeadlineExceededError("no answer");
  Put("dev/block/7:0/loop/backing_file", "/disk.img\n");
  EXPECT_TRUE(LiesOn(kRemote, {7, 0}).empty());
  EXPECT_EQ(topology_.unanswering.size(), 1u);
  EXPECT_FALSE(topology_.unanswering.contains({8, 1}));
}

constexpr char kTable[] =
    "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "2 1 8:2 / /images rw - xfs /dev/sda2 rw\n"
    "3 1 7:0 / /loop rw - ext4 /dev/loop0 rw\n"
    "4 1 253:1 / /mapped rw - ext4 /dev/mapper/x rw\n";

TEST_F(BlockTopologyTest, ALoopDeviceLiesOnTheFileSystemOfItsFile) {
  Put("dev/block/7:0/loop/backing_file", "/images/disk.img\n");
  EXPECT_EQ(LiesOn(kTable, {7, 0}), (std::set<DeviceId>{{8, 2}}));
  EXPECT_TRUE(LiesOn(kTable, {8, 1}).empty());
}

TEST_F(BlockTopologyTest, ADeletedBackingFileStillNamesItsFileSystem) {
  Put("dev/block/7:0/loop/backing_file", "/images/gone.img (deleted)\n");
  EXPECT_EQ(LiesOn(kTable, {7, 0}), (std::set<DeviceId>{{8, 2}}));
}

TEST_F(BlockTopologyTest, WhatTheDriverSaysCountsMoreThanAName) {
  Put("dev/block/7:0/loop/backing_file", "/disk.img\n");
  EXPECT_EQ(LiesOn(kTable, {7, 0}), (std::set<DeviceId>{{8, 1}}));
  backing_ = DeviceId{8, 2};
  EXPECT_EQ(LiesOn(kTable, {7, 0}), (std::set<DeviceId>{{8, 2}}));
  // The device number of a btrfs subvolume is in no mount table.
  backing_ = DeviceId{0, 77};
  EXPECT_EQ(LiesOn(kTable, {7, 0}), (std::set<DeviceId>{{8, 1}}));
}

TEST_F(BlockTopologyTest, MappingsOverPartitionsOfLoopsAreFollowedDown) {
  // /mapped = device-mapper over partition 259:1 of loop0.
  Put("dev/block/253:1/slaves/loop0p1/dev", "259:1\n");
  Put("devices/loop0/dev", "7:0\n");
  Put("devices/loop0/loop0p1/partition", "1\n");
  ASSERT_EQ(::symlink("../../devices/loop0/loop0p1", (directory_ / "dev/block/259:1").c_str()), 0);
  Put("dev/block/7:0/loop/backing_file", "/images/disk.img\n");
  EXPECT_EQ(LiesOn(kTable, {253, 1}), (std::set<DeviceId>{{8, 2}}));
}

TEST_F(BlockTopologyTest, StacksThatGoRoundInCirclesEnd) {
  Put("dev/block/253:1/slaves/a/dev", "253:1\n");
  EXPECT_TRUE(LiesOn(kTable, {253, 1}).empty());
}

}  // namespace
}  // namespace still::agent
