// What is the directory's own: layout, permissions, real processes.
#include "store/object/directory_store.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class DirectoryStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-directory-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    store_ = *DirectoryObjectStore::Open(dir_);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  mode_t ModeOf(const std::string& relative) {
    struct stat status {};
    EXPECT_EQ(::stat(JoinPath(dir_, relative).c_str(), &status), 0) << relative;
    return status.st_mode & 07777;
  }
  std::string dir_;
  std::unique_ptr<DirectoryObjectStore> store_;
};

TEST_F(DirectoryStoreTest, LongLeavesAreFannedOutAndEverythingIsPrivate) {
  mode_t before = ::umask(0);
  ASSERT_TRUE(store_->Put("config", "x").ok());
  ASSERT_TRUE(store_->Put("locks/short", "x").ok());
  ASSERT_TRUE(store_->Put("packs/abcdef0123456789", "x").ok());
  ::umask(before);
  for (const char* file : {"config", "locks/short", "packs/ab/abcdef0123456789"}) EXPECT_EQ(ModeOf(file), 0600u);
  for (const char* directory : {"locks", "packs", "packs/ab", ".writing"}) EXPECT_EQ(ModeOf(directory), 0700u);
}

TEST_F(DirectoryStoreTest, FilesThatAreNoObjectsAreNotListed) {
  ASSERT_TRUE(store_->Put("packs/abcdef0123456789", "x").ok());
  for (const char* stray : {"packs/abcdef0123456789", "packs/ab/cdef0123456789abcd", "packs/ab/README", "packs/x",
                            "UPPER", "catalog.db", "packs/ab/.hidden"}) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, stray), "stray").ok());
  }
  ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "packs/ab/abcdef0123456780")).ok());
  std::vector<ObjectInfo> objects = *store_->List("packs/");
  ASSERT_THAT(objects, SizeIs(1));
  EXPECT_EQ(objects[0].name, "packs/abcdef0123456789");
}

TEST_F(DirectoryStoreTest, ASymbolicLinkIsNotFollowed) {
  std::string secret = JoinPath(dir_, "outside");
  ASSERT_TRUE(WriteFileAtomically(secret, "secret").ok());
  ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "locks")).ok());
  ASSERT_EQ(::symlink(secret.c_str(), JoinPath(dir_, "locks/link").c_str()), 0);
  EXPECT_FALSE(store_->Get("locks/link", 100).ok());
}

TEST_F(DirectoryStoreTest, OpeningNeedsADirectory) {
  EXPECT_EQ(DirectoryObjectStore::Open(JoinPath(dir_, "absent")).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "file"), "x").ok());
  EXPECT_EQ(DirectoryObjectStore::Open(JoinPath(dir_, "file")).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(DirectoryStoreTest, TheWriterOfAKilledProcessIsSweptAndNotBefore) {
  absl::StatusOr<SocketPair> pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    absl::StatusOr<std::unique_ptr<ObjectWriter>> writer = store_->NewWriter("packs/abcdef0123456789", {});
    bool written = writer.ok() && (*writer)->Append(std::string(5000, 'x')).ok();
    if (!written || ::write(pair->second.get(), "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  EXPECT_TRUE(WaitReadable(pair->first.get(), absl::Seconds(30), "child").ok());
  absl::StatusOr<SweptLeftovers> swept = store_->SweepLeftovers();
  EXPECT_TRUE(swept.ok()) << swept.status();
  EXPECT_EQ(swept->removed, 0);
  EXPECT_EQ(swept->still_written, 1);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  swept = store_->SweepLeftovers();
  ASSERT_TRUE(swept.ok()) << swept.status();
  EXPECT_EQ(swept->removed, 1);
  EXPECT_EQ(swept->removed_bytes, 5000u);
  EXPECT_EQ(swept->still_written, 0);
  EXPECT_THAT(*ListDirectory(JoinPath(dir_, ".writing")), IsEmpty());
  EXPECT_THAT(*store_->List(""), IsEmpty());
}

}  // namespace
}  // namespace still
