#include "session/start_again.h"

#include <stdlib.h>

#include <string>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

class StartAgainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-again-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    config_.set_name("copy");
    config_.set_id("its own");
    config_.mutable_restore()->set_snapshot_id("s");
    config_.mutable_identity()->set_hostname("copy");
    config_.mutable_disk_server()->add_command("serve");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  // A disk of a lazy restore: magic, version 3, and where the name of what it lies over stands.
  void AddLazyDisk(const std::string& name, bool complete) {
    std::string header("QFI\xfb\0\0\0\3\0\0\0\0\0\0\0\0", 16);
    if (!complete) header[14] = 2;
    sessionpb::DiskFile& disk = *config_.add_disks();
    disk.set_name(name);
    disk.set_path(JoinPath(directory_, name));
    disk.set_format("qcow2");
    disk.set_backing_export(name);
    ASSERT_TRUE(WriteFileAtomically(disk.path(), header).ok());
  }
  static sessionpb::SessionStart Ready() {
    sessionpb::SessionStart last;
    last.set_ready(true);
    return last;
  }

  std::string directory_;
  sessionpb::SessionConfig config_;
};

TEST_F(StartAgainTest, ARestoredMachineBootsItsDisksAndStaysWhoItIs) {
  auto again = ConfigToStartAgain(config_, Ready());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_FALSE(again->has_restore());
  EXPECT_FALSE(again->has_identity());
  EXPECT_FALSE(again->has_disk_server());
  EXPECT_EQ(again->id(), "its own");
}

TEST_F(StartAgainTest, OneThatNeverBecameItselfStillHasTo) {
  sessionpb::SessionStart last;
  EXPECT_TRUE(ConfigToStartAgain(config_, last)->has_identity());
  last = Ready();
  last.set_network_down(true);
  EXPECT_TRUE(ConfigToStartAgain(config_, last)->has_identity());
  EXPECT_FALSE(ConfigToStartAgain(config_, std::nullopt)->has_identity()) << "of an older version";
}

TEST_F(StartAgainTest, OnlyDisksThatLackSomethingAreServed) {
  AddLazyDisk("vda", /*complete=*/true);
  EXPECT_FALSE(NeedsDiskServer(config_));
  EXPECT_FALSE(ConfigToStartAgain(config_, Ready())->has_disk_server());
  AddLazyDisk("vdb", /*complete=*/false);
  EXPECT_TRUE(NeedsDiskServer(config_));
  auto again = ConfigToStartAgain(config_, Ready());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->has_disk_server());
  EXPECT_EQ(again->disks(0).backing_export(), "");
  EXPECT_EQ(again->disks(1).backing_export(), "vdb");
}

TEST_F(StartAgainTest, ADiskThatIsGoneOrIsNoneIsAnError) {
  AddLazyDisk("vda", /*complete=*/false);
  ASSERT_TRUE(WriteFileAtomically(config_.disks(0).path(), "not what it was, at all").ok());
  EXPECT_EQ(ConfigToStartAgain(config_, Ready()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(NeedsDiskServer(config_)) << "in doubt it does";
  ASSERT_TRUE(RemoveFile(config_.disks(0).path()).ok());
  EXPECT_EQ(ConfigToStartAgain(config_, Ready()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(NeedsDiskServer(config_)) << "nobody will read it any more";
}

TEST_F(StartAgainTest, AProcessThatWasAdoptedIsNotOursToStart) {
  config_.set_adopt_pid(1);
  EXPECT_THAT(ConfigToStartAgain(config_, Ready()).status().message(), HasSubstr("adopt it again"));
}

}  // namespace
}  // namespace still::session
