#include "base/host_identity.h"

#include <stdlib.h>

#include <set>
#include <thread>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

class HostIdentityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-host-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string dir_;
};

TEST_F(HostIdentityTest, IsKeptAndDiffersBetweenStateDirectories) {
  const std::string one = JoinPath(dir_, "one");
  const HostIdentity first = ReadHostIdentity(one).value();
  EXPECT_EQ(first.id.size(), 32u);
  EXPECT_EQ(first.name, HostName());
  EXPECT_EQ(ReadHostIdentity(one).value(), first);
  EXPECT_NE(ReadHostIdentity(JoinPath(dir_, "two")).value().id, first.id);
  EXPECT_THAT(*ListDirectory(one), ::testing::ElementsAre("host-id")) << "nothing temporary is left";
}

TEST_F(HostIdentityTest, AllWhoAskAtOnceGetTheSame) {
  std::vector<std::string> ids(8);
  std::vector<std::thread> threads;
  for (std::string& id : ids) {
    threads.emplace_back([&id, this] { id = ReadHostIdentity(JoinPath(dir_, "state")).value().id; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::set<std::string>(ids.begin(), ids.end()).size(), 1u);
}

TEST_F(HostIdentityTest, ADamagedFileIsNotReplaced) {
  const std::string path = JoinPath(dir_, "host-id");
  ASSERT_TRUE(WriteFileAtomically(path, "no id\n").ok());
  EXPECT_EQ(ReadHostIdentity(dir_).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(*ReadFile(path, 100), "no id\n");
}

TEST_F(HostIdentityTest, WhereNothingCanBeMadeTheHostHasOnlyItsName) {
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "file"), "").ok());
  const HostIdentity host = ReadHostIdentity(JoinPath(dir_, "file/state")).value_or(HostIdentity{.name = HostName()});
  EXPECT_EQ(host.id, "");
}

}  // namespace
}  // namespace still
