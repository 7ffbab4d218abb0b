#include "snapshot/disk_swap.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "snapshot/file_image.h"

namespace still::snapshot {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class DiskSwapTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-swap-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    const store::RepositoryOptions options{.path = JoinPath(directory_, "repository")};
    ASSERT_TRUE(store::Repository::Init(options).ok());
    auto repository = store::Repository::Open(options);
    ASSERT_TRUE(repository.ok()) << repository.status();
    repository_ = *std::move(repository);
    Write("vda", std::string(8192, 'o'));
    auto imported = ImportFile(*repository_, {.path = Path("vda")});
    ASSERT_TRUE(imported.ok()) << imported.status();
    snapshot_ = *imported;
    Write("vda", std::string(8192, 'n'));
    disk_.set_name("vda");
    disk_.set_format("raw");
    disk_.set_path(Path("vda"));
  }
  void TearDown() override {
    repository_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  std::string Path(const std::string& name) { return JoinPath(directory_, name); }
  void Write(const std::string& name, const std::string& content) {
    ASSERT_TRUE(WriteFileAtomically(Path(name), content).ok());
  }
  char First(const std::string& name) { return ReadFile(Path(name), 1 << 20).value_or("?")[0]; }
  // The disk and the repository are all there is: nothing staged, nothing old.
  void ExpectNothingLeft() { EXPECT_THAT(ListDirectory(directory_).value(), SizeIs(2)); }

  std::string directory_;
  std::unique_ptr<store::Repository> repository_;
  manifestpb::Snapshot snapshot_;
  sessionpb::DiskFile disk_;
};

TEST_F(DiskSwapTest, TheSnapshotsContentTakesThePlaceWithTheSameMode) {
  ASSERT_EQ(::chmod(Path("vda").c_str(), 0640), 0);
  {
    DiskSwap swap("tag");
    ASSERT_TRUE(swap.Stage(*repository_, snapshot_, disk_, [](const Progress&) {}).ok());
    EXPECT_EQ(First("vda"), 'n');
    ASSERT_TRUE(swap.Swap().ok());
    EXPECT_EQ(First("vda"), 'o');
    ASSERT_TRUE(swap.Discard().ok());
  }
  EXPECT_EQ(First("vda"), 'o');
  struct stat info {};
  ASSERT_EQ(::stat(Path("vda").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0640u);
  ExpectNothingLeft();
}

TEST_F(DiskSwapTest, WhatIsNotDiscardedComesBack) {
  {
    DiskSwap swap("tag");
    ASSERT_TRUE(swap.Stage(*repository_, snapshot_, disk_, [](const Progress&) {}).ok());
    ASSERT_TRUE(swap.Swap().ok());
    EXPECT_EQ(First("vda"), 'o');
  }
  EXPECT_EQ(First("vda"), 'n');
  ExpectNothingLeft();
}

TEST_F(DiskSwapTest, ALinkStaysAndItsTargetIsReplaced) {
  ASSERT_EQ(::symlink(Path("vda").c_str(), Path("link").c_str()), 0);
  disk_.set_path(Path("link"));
  {
    DiskSwap swap("tag");
    ASSERT_TRUE(swap.Stage(*repository_, snapshot_, disk_, [](const Progress&) {}).ok());
    ASSERT_TRUE(swap.Swap().ok());
    ASSERT_TRUE(swap.Discard().ok());
  }
  struct stat info {};
  ASSERT_EQ(::lstat(Path("link").c_str(), &info), 0);
  EXPECT_TRUE(S_ISLNK(info.st_mode));
  EXPECT_EQ(First("vda"), 'o');
}

TEST_F(DiskSwapTest, WhatIsNoRegularFileIsRefused) {
  disk_.set_path("/dev/null");
  EXPECT_THAT(DiskSwap::Check(disk_).message(), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace still::snapshot
