#include "base/move_into_place.h"

#include <stdlib.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "base/absolute_path.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Move = absl::Status (*)(const std::string& from, const std::string& to);

// With the flag, and as it is done where the file system does not know it.
class MoveIntoPlaceTest : public ::testing::TestWithParam<Move> {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-move-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string In(const std::string& name) const { return JoinPath(dir_, name); }
  std::string dir_;
};

TEST_P(MoveIntoPlaceTest, AFileGetsItsNameAndLosesTheOld) {
  ASSERT_TRUE(WriteFileAtomically(In("x.partial"), "whole").ok());
  ASSERT_TRUE(GetParam()(In("x.partial"), In("x")).ok());
  EXPECT_THAT(*ListDirectory(dir_), ElementsAre("x"));
  EXPECT_EQ(*ReadFile(In("x"), 100), "whole");
}

TEST_P(MoveIntoPlaceTest, ADirectoryGetsItsNameWithAllInIt) {
  ASSERT_TRUE(MakeDirectories(In("d.partial")).ok());
  ASSERT_TRUE(WriteFileAtomically(In("d.partial/f"), "whole").ok());
  ASSERT_TRUE(GetParam()(In("d.partial"), In("d")).ok());
  EXPECT_THAT(*ListDirectory(dir_), ElementsAre("d"));
  EXPECT_EQ(*ReadFile(In("d/f"), 100), "whole");
}

TEST_P(MoveIntoPlaceTest, WhatIsThereIsNotTouched) {
  ASSERT_TRUE(WriteFileAtomically(In("x.partial"), "new").ok());
  ASSERT_TRUE(WriteFileAtomically(In("x"), "old").ok());
  ASSERT_TRUE(MakeDirectories(In("d.partial")).ok());
  ASSERT_TRUE(MakeDirectories(In("d")).ok());
  absl::Status file = GetParam()(In("x.partial"), In("x"));
  EXPECT_EQ(file.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(file.message(), HasSubstr("x.partial to "));
  EXPECT_EQ(GetParam()(In("d.partial"), In("d")).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*ReadFile(In("x"), 100), "old");
  EXPECT_THAT(*ListDirectory(dir_), ElementsAre("d", "d.partial", "x", "x.partial"));
}

TEST_P(MoveIntoPlaceTest, WhatIsNotThereLeavesNothing) {
  EXPECT_EQ(GetParam()(In("gone"), In("x")).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*ListDirectory(dir_), ElementsAre());
}

INSTANTIATE_TEST_SUITE_P(Ways, MoveIntoPlaceTest, ::testing::Values(&MoveIntoPlace, &MoveWithoutFlag));

TEST(AbsolutePathTest, ADeletedWorkingDirectoryIsAnErrorAndNoEnd) {
  const std::string before = *AbsolutePath(".");
  std::string pattern = JoinPath(::testing::TempDir(), "still-cwd-XXXXXX");
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  ASSERT_EQ(::chdir(pattern.c_str()), 0);
  ASSERT_EQ(::rmdir(pattern.c_str()), 0);
  EXPECT_EQ(*AbsolutePath("/disk.img"), "/disk.img");
  absl::StatusOr<std::string> relative = AbsolutePath("disk.img");
  ASSERT_EQ(::chdir(before.c_str()), 0);
  EXPECT_EQ(relative.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(relative.status().message(), HasSubstr("working directory"));
}

TEST(AbsolutePathTest, TheParentOfANameIsHere) {
  EXPECT_EQ(ParentDirectory("x"), ".");
  EXPECT_EQ(ParentDirectory("a/x"), "a");
  EXPECT_EQ(ParentDirectory("a/x/"), "a");
  EXPECT_EQ(ParentDirectory("/x"), "/");
}

}  // namespace
}  // namespace still
