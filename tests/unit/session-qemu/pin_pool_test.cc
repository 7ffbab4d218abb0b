// What the captures of one host keep, over the directories of several sessions.
#include "session/hypervisor/pin_pool.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/file.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;

class PinPoolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    sessions_ = JoinPath(::testing::TempDir(), "still-pins-XXXXXX");
    ASSERT_NE(::mkdtemp(sessions_.data()), nullptr);
    for (const char* name : {"web", "db"}) ASSERT_TRUE(MakeDirectories(Directory(name)).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(sessions_).ok()); }

  std::string Directory(const std::string& session) const { return JoinPath(sessions_, session); }
  PinPool Pool(const std::string& session, uint64_t limit = 3 * kMiB) const {
    return PinPool(Directory(session), sessions_, limit);
  }
  // A pin into which `bytes` have been written.
  PinPool::File Make(const std::string& session, uint64_t bytes) const {
    auto file = Pool(session).Make("1-vda", 64 * kMiB);
    EXPECT_TRUE(file.ok()) << file.status();
    EXPECT_TRUE(PWriteAll(file->lock.get(), std::string(bytes, 'x').data(), bytes, 0, "pin").ok());
    EXPECT_EQ(::fsync(file->lock.get()), 0);
    return *std::move(file);
  }

  std::string sessions_;
};

TEST_F(PinPoolTest, AFileIsSparseAndCountsWhatItHolds) {
  PinPool::File file = Make("web", kMiB);
  EXPECT_EQ(FileSize(file.path).value_or(0), 64 * kMiB);
  EXPECT_GE(Pool("web").own_bytes(), kMiB);
  EXPECT_LT(Pool("web").own_bytes(), 2 * kMiB);
  EXPECT_EQ(Pool("db").own_bytes(), 0u);
}

// As ext4 refuses what is longer than 16 TiB - 4 KiB.
TEST_F(PinPoolTest, WhatNoFileCanBeAsLongAsIsQcow2) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* old_handler = ::signal(SIGXFSZ, SIG_IGN);  // As the programs have it.
  const rlimit small{.rlim_cur = 32 * kMiB, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  auto file = Pool("web").Make("1-vda", 64 * kMiB);
  EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, old_handler);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(file->qcow2);
  EXPECT_EQ(ReadFile(file->path, kMiB).value_or("").substr(0, 4), "QFI\xfb");
  EXPECT_TRUE(Pool("web").Sweep().ok());
  EXPECT_TRUE(PathExists(file->path)) << "it is held like any other";
}

TEST_F(PinPoolTest, TogetherTheyAreBoundedAndTheOneThatKeepsMostGivesUp) {
  PinPool::File web = Make("web", kMiB);
  EXPECT_TRUE(Pool("web").Check().ok());
  PinPool::File db = Make("db", 5 * kMiB / 2);
  absl::Status most = Pool("db").Check();
  EXPECT_EQ(most.code(), absl::StatusCode::kResourceExhausted) << most;
  EXPECT_THAT(std::string(most.message()), HasSubstr("3 MiB that may be kept for all of them"));
  EXPECT_TRUE(Pool("web").Check().ok()) << "only one has to give up";
  EXPECT_TRUE(PinPool(Directory("db"), "", 3 * kMiB).Check().ok()) << "alone it may";
  EXPECT_TRUE(Pool("db", 0).Check().ok()) << "half of what is free here is more";
}

TEST_F(PinPoolTest, WhatAKilledSessionLeftCountsNoMoreAndIsRemoved) {
  PinPool::File web = Make("web", kMiB);
  PinPool::File db = Make("db", 5 * kMiB);
  db.lock.Reset();  // As the kernel does when its holder dies.
  EXPECT_TRUE(Pool("web").Check().ok());
  EXPECT_FALSE(PathExists(db.path));
  EXPECT_TRUE(PathExists(web.path));
}

TEST_F(PinPoolTest, ASweepTakesOnlyWhatNobodyHolds) {
  PinPool::File file = Make("web", kMiB);
  ASSERT_TRUE(WriteFileAtomically(JoinPath(Directory("web"), "console.log"), "x").ok());
  EXPECT_TRUE(Pool("web").Sweep().ok());
  EXPECT_TRUE(PathExists(file.path));
  file.lock.Reset();
  EXPECT_TRUE(Pool("web").Sweep().ok());
  EXPECT_FALSE(PathExists(file.path));
  EXPECT_TRUE(PathExists(JoinPath(Directory("web"), "console.log")));
}

}  // namespace
}  // namespace still::session
