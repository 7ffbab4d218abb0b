// The disk server's process is kept running, with a program that behaves as each test wants in the place of nbdkit.
#include "session/disk_server.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/unix_socket.h"
#include "tests/unit/session-disks/disk_server_fixture.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

using DiskServerTest = testing::DiskServerFixture;

TEST_F(DiskServerTest, ServesWhenStartReturnsAndEndsWithTheObject) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE((*server)->serving());
  const pid_t pid = Pid();
  EXPECT_EQ(::kill(pid, 0), 0);
  server->reset();
  EXPECT_NE(::kill(pid, 0), 0);
  EXPECT_FALSE(PathExists(Path("disks.sock")));
}

TEST_F(DiskServerTest, AProgramThatCannotServeIsAnErrorWithItsLastWords) {
  Fail(true);
  auto server = DiskServer::Start(Options());
  EXPECT_TRUE(absl::IsFailedPrecondition(server.status())) << server.status();
  EXPECT_THAT(server.status().message(), HasSubstr("the repository is away"));
  auto missing = DiskServer::Start({.command = {Path("no-such-program")}, .socket_path = Path("disks.sock")});
  EXPECT_THAT(missing.status().message(), HasSubstr("no-such-program"));
}

TEST_F(DiskServerTest, WhenItDiesItIsStartedAgainAndWhoConnectsMeanwhileWaits) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  const pid_t first = Pid();
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_TRUE(Within(absl::Seconds(20), [&] { return ::kill(first, 0) != 0; })) << "else it may still accept";
  auto client = ConnectUnix(Path("disks.sock"));
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(WaitReadable(client->get(), absl::Seconds(20), "greeting").ok());
  EXPECT_NE(Pid(), first);
  EXPECT_TRUE(Within(absl::Seconds(20), [&] { return (*server)->serving(); }));
}

TEST_F(DiskServerTest, ARestartSaysWhyItFailedAndLaterThatItWorks) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  Fail(true);
  absl::Status failed = (*server)->Restart();
  EXPECT_THAT(failed.message(), HasSubstr("the repository is away"));
  EXPECT_FALSE((*server)->serving());
  Fail(false);
  absl::Status back = (*server)->Restart();
  EXPECT_TRUE(back.ok()) << back;
  EXPECT_EQ((*server)->last_error(), "");
}

TEST_F(DiskServerTest, WhatCouldNotBeReadIsKeptUntilItIsForgotten) {
  ASSERT_TRUE(WriteFileAtomically(Path("unread"), "").ok());
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(Within(absl::Seconds(20), [&] { return (*server)->unread() == "bytes 1 to 2: gone"; }));
  EXPECT_EQ((*server)->last_error(), "") << "it has no trouble of its own";
  ASSERT_TRUE(RemoveFile(Path("unread")).ok());
  Fail(true);
  EXPECT_THAT((*server)->Restart().message(), HasSubstr("the repository is away"));
  EXPECT_EQ((*server)->unread(), "bytes 1 to 2: gone");
  (*server)->ForgetUnread();
  EXPECT_EQ((*server)->unread(), "");
}

TEST_F(DiskServerTest, TheSecretReachesEveryRun) {
  DiskServer::Options options = Options();
  options.secret = OwnedFd(::memfd_create("secret", MFD_CLOEXEC));
  ASSERT_TRUE(WriteAll(options.secret.get(), "horse", 5, "secret").ok());
  auto server = DiskServer::Start(std::move(options));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(ReadFile(Path("secret"), 100).value_or(""), "horse");
  ASSERT_TRUE(RemoveFile(Path("secret")).ok());
  ASSERT_TRUE((*server)->Restart().ok());
  EXPECT_EQ(ReadFile(Path("secret"), 100).value_or(""), "horse");
}

}  // namespace
}  // namespace still::session
