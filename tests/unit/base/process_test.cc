#include "base/process.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

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

}  // namespace
}  // namespace still
