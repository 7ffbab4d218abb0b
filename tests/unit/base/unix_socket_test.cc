#include "base/unix_socket.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "base/file.h"
#include "gtest/gtest.h"

namespace still {
namespace {

class UnixSocketTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-sock-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string dir_;
};

TEST_F(UnixSocketTest, ConnectsAlsoUnderAPathLongerThanTheAddress) {
  std::string deep = JoinPath(dir_, std::string(150, 'd'));
  ASSERT_TRUE(MakeDirectories(deep).ok());
  for (const std::string& path : {JoinPath(dir_, "s"), JoinPath(deep, "s")}) {
    auto listening = ListenUnix(path);
    ASSERT_TRUE(listening.ok()) << listening.status();
    auto client = ConnectUnix(path);
    ASSERT_TRUE(client.ok()) << client.status();
    auto server = AcceptWithin(listening->get(), absl::Seconds(10), "client");
    ASSERT_TRUE(server.ok()) << server.status();
  }
}

TEST_F(UnixSocketTest, AStaleSocketFileIsReplaced) {
  std::string path = JoinPath(dir_, "s");
  { ASSERT_TRUE(ListenUnix(path).ok()); }
  EXPECT_EQ(ConnectUnix(path).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(ListenUnix(path).ok());
}

TEST_F(UnixSocketTest, NobodyConnectsInTime) {
  auto listening = ListenUnix(JoinPath(dir_, "s"));
  ASSERT_TRUE(listening.ok());
  EXPECT_EQ(AcceptWithin(listening->get(), absl::Milliseconds(20), "x").status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(UnixSocketTest, PassesADescriptor) {
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  OwnedFd read_end(pipe_fds[0]), write_end(pipe_fds[1]);
  ASSERT_TRUE(SendWithFd(pair->first.get(), "hello", write_end.get()).ok());
  char data[5];
  iovec part{.iov_base = data, .iov_len = sizeof data};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ASSERT_EQ(::recvmsg(pair->second.get(), &message, MSG_CMSG_CLOEXEC), 5);
  OwnedFd received(*reinterpret_cast<int*>(CMSG_DATA(CMSG_FIRSTHDR(&message))));
  ASSERT_EQ(::write(received.get(), "x", 1), 1);
  char c = 0;
  ASSERT_EQ(::read(read_end.get(), &c, 1), 1);
  EXPECT_EQ(c, 'x');
}

}  // namespace
}  // namespace still
