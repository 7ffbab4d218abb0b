#include "snapshot/boot_files.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::SizeIs;

class BootFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-boot-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string Path(const std::string& name) { return JoinPath(directory_, name); }
  absl::Status Link(const std::string& key, const std::string& name) {
    return BootFiles(Path("boot-files")).LinkTo(key, Path(name), [this, key](int fd) {
      ++writes_;
      return PWriteAll(fd, key.data(), key.size(), 0, "kernel");
    });
  }
  struct stat Stat(const std::string& name) {
    struct stat info {};
    EXPECT_EQ(::stat(Path(name).c_str(), &info), 0) << name;
    return info;
  }

  std::string directory_;
  int writes_ = 0;
};

TEST_F(BootFilesTest, ManySessionsHaveOneFileThatNoneCanChange) {
  for (const char* name : {"a", "b", "c"}) ASSERT_TRUE(Link("kernel", name).ok());
  EXPECT_EQ(writes_, 1);
  EXPECT_EQ(Stat("a").st_ino, Stat("c").st_ino);
  EXPECT_EQ(Stat("a").st_mode & 0777, 0400u);
  EXPECT_EQ(ReadFile(Path("b"), 100).value(), "kernel");
}

TEST_F(BootFilesTest, AWriteThatFailsLeavesNothingUnderTheName) {
  absl::Status failed =
      BootFiles(Path("boot-files")).LinkTo("kernel", Path("a"), [](int) { return absl::DataLossError("damaged"); });
  EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ListDirectory(Path("boot-files")).value(), SizeIs(0));
  EXPECT_FALSE(PathExists(Path("a")));
}

TEST_F(BootFilesTest, WhatWasJustMadeIsNotRemovedAsUnused) {
  ASSERT_TRUE(Link("one", "a").ok());
  ASSERT_TRUE(RemoveFile(Path("a")).ok());
  ASSERT_TRUE(Link("two", "b").ok());
  ASSERT_TRUE(Link("one", "c").ok());
  EXPECT_EQ(writes_, 2);
}

TEST_F(BootFilesTest, ANameThatIsTakenIsNotReplaced) {
  ASSERT_TRUE(WriteFileAtomically(Path("a"), "mine").ok());
  EXPECT_EQ(Link("kernel", "a").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(Path("a"), 100).value(), "mine");
}

}  // namespace
}  // namespace still::snapshot
