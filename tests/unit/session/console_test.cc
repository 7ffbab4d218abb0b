#include "session/console.h"

#include <stdlib.h>

#include "base/file.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

class ConsoleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-console-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string Described(const std::string& content) {
    std::string path = JoinPath(directory_, "console.log");
    EXPECT_TRUE(WriteFileAtomically(path, content).ok());
    return DescribeConsoleEnd(path);
  }

  std::string directory_;
};

TEST_F(ConsoleTest, TheLastLineThatSaysSomethingIsQuoted) {
  EXPECT_EQ(Described("booting\r\nKernel panic\r\n \r\n"), "its console ends with \"Kernel panic\"");
  EXPECT_EQ(Described(std::string(100'000, 'x') + "\nthe end"), "its console ends with \"the end\"");
}

TEST_F(ConsoleTest, AConsoleWithoutALineIsSaidToBeEmptyOrMissing) {
  EXPECT_EQ(Described(""), "its console is empty");
  EXPECT_EQ(DescribeConsoleEnd(JoinPath(directory_, "none")), "it has no console");
}

TEST_F(ConsoleTest, WhatAGuestWritesReachesNoTerminal) {
  EXPECT_EQ(Described("\x1b[2Jgone\a"), "its console ends with \"\\x1b[2Jgone\\x07\"");
  EXPECT_LT(Described(std::string(100'000, '\x01')).size(), 1000u);
}

}  // namespace
}  // namespace still::session
