#include "session/hypervisor/qemu/qcow2_backing.h"

#include <stdlib.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

// Images as qemu-img makes them.
class Qcow2BackingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-backing-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    ASSERT_TRUE(MakeDirectories(Path("images")).ok());
    Make({"-f", "raw", "images/base.raw", "1M"});
    Make({"-f", "qcow2", "-b", "base.raw", "-F", "raw", "images/middle.qcow2"});
    Make({"-f", "qcow2", "-b", "images/middle.qcow2", "-F", "qcow2", "top.qcow2"});
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string Path(const std::string& name) const { return JoinPath(directory_, name); }
  void QemuImg(std::vector<std::string> words) const {
    words.insert(words.begin(), "qemu-img");
    auto made = RunCommand({.argv = std::move(words), .working_directory = directory_}, absl::Seconds(60));
    ASSERT_TRUE(made.ok()) << made.status();
    ASSERT_TRUE(made->exit.ok()) << made->stderr_text;
  }
  void Make(std::vector<std::string> words) const {
    words.insert(words.begin(), {"create", "-q"});
    QemuImg(std::move(words));
  }

  std::string directory_;
};

TEST_F(Qcow2BackingTest, AChainIsFollowedFromEachImagesOwnFolder) {
  auto chain = BackingChainOf(Path("top.qcow2"));
  ASSERT_TRUE(chain.ok()) << chain.status();
  ASSERT_EQ(chain->size(), 2u);
  EXPECT_EQ((*chain)[0].path, Path("images/middle.qcow2"));
  EXPECT_EQ((*chain)[0].format, "qcow2");
  EXPECT_EQ((*chain)[1].path, Path("images/base.raw"));
  EXPECT_EQ((*chain)[1].format, "raw");
}

TEST_F(Qcow2BackingTest, OldHeadersAreReadToo) {
  Make({"-f", "qcow2", "-o", "compat=0.10", "-b", "images/base.raw", "-F", "raw", "old.qcow2"});
  auto chain = BackingChainOf(Path("old.qcow2"));
  ASSERT_TRUE(chain.ok()) << chain.status();
  ASSERT_EQ(chain->size(), 1u);
  EXPECT_EQ((*chain)[0].format, "raw");
}

TEST_F(Qcow2BackingTest, AnImageThatStandsAloneHasNone) {
  Make({"-f", "qcow2", "alone.qcow2", "1M"});
  auto chain = BackingChainOf(Path("alone.qcow2"));
  ASSERT_TRUE(chain.ok()) << chain.status();
  EXPECT_TRUE(chain->empty());
}

TEST_F(Qcow2BackingTest, WhatIsNoFileOrDoesNotSayWhatItIsIsTold) {
  QemuImg({"rebase", "-u", "-F", "raw", "-b", "nbd+unix:///x?socket=/run/x", "top.qcow2"});
  auto chain = BackingChainOf(Path("top.qcow2"));
  EXPECT_EQ(chain.status().code(), absl::StatusCode::kUnimplemented) << chain.status();
  EXPECT_THAT(std::string(chain.status().message()), HasSubstr("nbd+unix"));

  Make({"-f", "qcow2", "-o", absl::StrCat("data_file=", Path("data")), "apart.qcow2", "1M"});
  EXPECT_EQ(BackingChainOf(Path("apart.qcow2")).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(Qcow2BackingTest, AChainWithoutEndIsGivenUp) {
  QemuImg({"rebase", "-u", "-F", "qcow2", "-b", Path("top.qcow2"), "top.qcow2"});
  EXPECT_EQ(BackingChainOf(Path("top.qcow2")).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(Qcow2BackingTest, DamagedHeadersAreErrors) {
  ASSERT_TRUE(WriteFileAtomically(Path("short"), "QFI\xfb").ok());
  EXPECT_FALSE(BackingChainOf(Path("short")).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("other"), std::string(512, 'x')).ok());
  EXPECT_EQ(BackingChainOf(Path("other")).status().code(), absl::StatusCode::kFailedPrecondition);
  // A name of four thousand million bytes.
  std::string header = ReadFile(Path("top.qcow2"), 1 << 20).value();
  header.replace(16, 4, "\xff\xff\xff\xff");
  ASSERT_TRUE(WriteFileAtomically(Path("long"), header).ok());
  EXPECT_EQ(BackingChainOf(Path("long")).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace still::session
