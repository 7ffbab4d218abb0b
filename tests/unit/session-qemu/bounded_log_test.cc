#include "session/hypervisor/bounded_log.h"

#include <stdlib.h>

#include "base/file.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

TEST(BoundedLog, KeepsTheLastAndNoMoreThanTwiceTheLimit) {
  std::string directory = JoinPath(::testing::TempDir(), "still-log-XXXXXX");
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::string path = JoinPath(directory, "console.log");
  auto log = BoundedLog::Create(path, 100);
  ASSERT_TRUE(log.ok()) << log.status();
  for (int i = 0; i < 10; ++i) log->Append(std::string(30, static_cast<char>('a' + i)));
  EXPECT_EQ(ReadFile(path, 1000).value_or(""), std::string(30, 'j'));
  EXPECT_EQ(ReadFile(path + ".1", 1000).value_or(""),
            std::string(30, 'g') + std::string(30, 'h') + std::string(30, 'i'));
  log->Append(std::string(101, 'x'));
  EXPECT_LE(FileSize(path).value_or(1000), 100u) << "a piece longer than the limit";
  EXPECT_TRUE(RemoveTree(directory).ok());
}

TEST(BoundedLog, GoesOnWithAFileAndItsBound) {
  std::string directory = JoinPath(::testing::TempDir(), "still-log-XXXXXX");
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::string path = JoinPath(directory, "session.log");
  ASSERT_TRUE(WriteFileAtomically(path, std::string(90, 'a')).ok());
  auto log = BoundedLog::Continue(path, 100);
  ASSERT_TRUE(log.ok()) << log.status();
  const int before = log->fd();
  log->Append("bbbbb");
  EXPECT_EQ(log->fd(), before);
  EXPECT_EQ(ReadFile(path, 1000).value_or(""), std::string(90, 'a') + "bbbbb");
  log->Append(std::string(10, 'c'));
  EXPECT_NE(log->fd(), before) << "whoever writes to the old one must know";
  EXPECT_EQ(ReadFile(path, 1000).value_or(""), std::string(10, 'c'));
  EXPECT_TRUE(RemoveTree(directory).ok());
}

}  // namespace
}  // namespace still::session
