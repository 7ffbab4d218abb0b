#include "base/file.h"

#include <fcntl.h>
#include <stdlib.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-file-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string dir_;
};

TEST_F(FileTest, AtomicWriteReplacesAndLeavesNoTemporary) {
  std::string path = JoinPath(dir_, "f");
  ASSERT_TRUE(WriteFileAtomically(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(path, "two").ok());
  EXPECT_EQ(*ReadFile(path, 100), "two");
  EXPECT_THAT(*ListDirectory(dir_), ElementsAre("f"));
}

TEST_F(FileTest, AtomicWriteIntoAMissingDirectoryNamesIt) {
  absl::Status status = WriteFileAtomically(JoinPath(dir_, "no/f"), "x");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("/no/f"));
}

TEST_F(FileTest, ReadFileRefusesWhatIsTooLong) {
  std::string path = JoinPath(dir_, "f");
  ASSERT_TRUE(WriteFileAtomically(path, std::string(101, 'x')).ok());
  EXPECT_EQ(ReadFile(path, 100).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(path, 101)->size(), 101u);
}

TEST_F(FileTest, MakeDirectoriesIsIdempotentAndRefusesAFileInTheWay) {
  EXPECT_TRUE(MakeDirectories(JoinPath(dir_, "a/b/c")).ok());
  EXPECT_TRUE(MakeDirectories(JoinPath(dir_, "a/b/c")).ok());
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "file"), "x").ok());
  EXPECT_FALSE(MakeDirectories(JoinPath(dir_, "file/d")).ok());
  EXPECT_FALSE(MakeDirectories(JoinPath(dir_, "file")).ok());
}

TEST_F(FileTest, ReadExactlyReportsAnEarlyEnd) {
  std::string path = JoinPath(dir_, "f");
  ASSERT_TRUE(WriteFileAtomically(path, "abc").ok());
  auto fd = OpenFile(path, O_RDONLY);
  ASSERT_TRUE(fd.ok());
  char buffer[4];
  EXPECT_EQ(PReadExactly(fd->get(), buffer, 4, 0, path).code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(PReadExactly(fd->get(), buffer, 2, 1, path).ok());
}

}  // namespace
}  // namespace still
