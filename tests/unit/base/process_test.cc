#include "base/process.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;

TEST(ProcessTest, CollectsOutputAndExitCode) {
  auto output = RunCommand({.argv = {"sh", "-c", "echo out; echo err >&2; exit 3"}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->exit.exit_code, 3);
  EXPECT_EQ(output->stdout_text, "out\n");
  EXPECT_EQ(output->stderr_text, "err\n");
}

TEST(ProcessTest, AMissingProgramIsNotFoundAndNamed) {
  auto child = ChildProcess::Start({.argv = {"no-such-program-anywhere"}});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(child.status().message(), HasSubstr("no-such-program-anywhere"));
}

TEST(ProcessTest, ADeadlineKillsTheChild) {
  EXPECT_EQ(RunCommand({.argv = {"sleep", "100"}}, absl::Milliseconds(50)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(ProcessTest, TheDestructorLeavesNothingBehind) {
  pid_t pid;
  {
    auto child = ChildProcess::Start({.argv = {"sleep", "100"}});
    ASSERT_TRUE(child.ok());
    pid = child->pid();
    EXPECT_EQ(::kill(pid, 0), 0);
  }
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(ProcessTest, ASignalIsReportedAndWaitIsRepeatable) {
  auto child = ChildProcess::Start({.argv = {"sleep", "100"}});
  ASSERT_TRUE(child.ok());
  ASSERT_TRUE(child->Kill(SIGTERM).ok());
  EXPECT_EQ(child->Wait()->signal, SIGTERM);
  EXPECT_EQ(child->Wait()->signal, SIGTERM);
  EXPECT_TRUE(child->Kill(SIGTERM).ok());
}

TEST(ProcessTest, OnlyNamedDescriptorsAreInherited) {
  OwnedFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  // Out of the way of what the program opens itself.
  OwnedFd kept(::fcntl(null.get(), F_DUPFD_CLOEXEC, 100));
  OwnedFd other(::fcntl(null.get(), F_DUPFD, 200));
  auto output = RunCommand({.argv = {"ls", "/proc/self/fd"}, .inherited_fds = {kept.get()}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok());
  EXPECT_THAT(output->stdout_text, HasSubstr(absl::StrCat("\n", kept.get(), "\n")));
  EXPECT_THAT(output->stdout_text, ::testing::Not(HasSubstr(absl::StrCat("\n", other.get(), "\n"))));
}

TEST(ProcessTest, EnvironmentIsAddedTo) {
  auto output =
      RunCommand({.argv = {"sh", "-c", "echo $STILL_X-$PATH"}, .environment = {{"STILL_X", "1"}}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok());
  EXPECT_THAT(output->stdout_text, HasSubstr("1-/"));
}

// What /proc/PID/status says of it.
std::string StatusLine(const std::string& status, const std::string& name) {
  const size_t at = status.find("\n" + name + ":");
  if (at == std::string::npos) return "";
  return status.substr(at + 1, status.find('\n', at + 1) - at - 1);
}

TEST(ProcessTest, AChildOfRootsIsAnotherUserWithNothingOfRoots) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can start a process as another user";
  auto output =
      RunCommand({.argv = {"cat", "/proc/self/status"}, .user = ProcessUser{.uid = 1900000001, .gid = 1900000002}},
                 absl::Seconds(20));
  ASSERT_TRUE(output.ok()) << output.status();
  const std::string& status = output->stdout_text;
  EXPECT_EQ(StatusLine(status, "Uid"), "Uid:\t1900000001\t1900000001\t1900000001\t1900000001");
  EXPECT_EQ(StatusLine(status, "Gid"), "Gid:\t1900000002\t1900000002\t1900000002\t1900000002");
  EXPECT_EQ(StatusLine(status, "Groups"), "Groups:\t ");
  for (const char* set : {"CapPrm", "CapEff", "CapAmb"}) {
    EXPECT_EQ(StatusLine(status, set), absl::StrCat(set, ":\t0000000000000000"));
  }
  EXPECT_EQ(StatusLine(status, "NoNewPrivs"), "NoNewPrivs:\t1");
}

TEST(ProcessTest, AProgramThatTheUserMayNotExecuteIsNotStarted) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can start a process as another user";
  std::string program = JoinPath(::testing::TempDir(), "still-process-XXXXXX");
  OwnedFd file(::mkstemp(program.data()));  // Mode 0600.
  ASSERT_TRUE(file.valid());
  ASSERT_EQ(::fchmod(file.get(), 0700), 0);
  auto child = ChildProcess::Start({.argv = {program}, .user = ProcessUser{.uid = 1900000001, .gid = 1900000001}});
  EXPECT_EQ(child.status().code(), absl::StatusCode::kPermissionDenied) << child.status();
  EXPECT_TRUE(RemoveFile(program).ok());
}

// The kernel forgets "end with your parent" when a process changes its user.
TEST(ProcessTest, AChildOfAnotherUserEndsWithTheThreadThatStartedIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can start a process as another user";
  absl::StatusOr<ChildProcess> child = absl::UnknownError("not started");
  std::thread parent([&child] {
    child = ChildProcess::Start({.argv = {"sleep", "1000"},
                                 .end_with_parent = true,
                                 .user = ProcessUser{.uid = 1900000001, .gid = 1900000001}});
  });
  parent.join();
  ASSERT_TRUE(child.ok()) << child.status();
  auto exit = child->Wait(absl::Seconds(60));
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->signal, SIGKILL);
}

}  // namespace
}  // namespace still
