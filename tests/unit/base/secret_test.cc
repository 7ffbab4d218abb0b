#include "base/secret.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kName[] = "STILL_SECRET_TEST";
constexpr char kSecret[] = "correct horse of secret_test";

// Runs this program again, with the secret in its environment as a user's shell puts it there.
TEST(Secret, IsGoneFromWhatProcShowsAndFromWhatChildrenInherit) {
  if (const char* role = ::getenv("STILL_SECRET_ROLE"); role != nullptr) {
    const std::string before = ReadFile("/proc/self/environ", 1 << 20).value_or("");
    EXPECT_THAT(before, HasSubstr(kSecret)) << "or the test shows nothing";
    EXPECT_EQ(TakeSecretVariable(kName), kSecret);
    EXPECT_EQ(TakeSecretVariable(kName), "");
    EXPECT_THAT(ReadFile("/proc/self/environ", 1 << 20).value_or(kSecret), Not(HasSubstr(kSecret)));
    auto child = RunCommand({.argv = {"env"}}, absl::Seconds(60));
    ASSERT_TRUE(child.ok()) << child.status();
    EXPECT_THAT(child->stdout_text, Not(HasSubstr(kSecret)));
    EXPECT_THAT(child->stdout_text, HasSubstr("STILL_SECRET_ROLE"));
    return;
  }
  char self[4096] = {};
  ASSERT_GT(::readlink("/proc/self/exe", self, sizeof self - 1), 0);
  auto again = RunCommand({.argv = {self, "--gtest_filter=Secret.IsGoneFromWhatProcShowsAndFromWhatChildrenInherit"},
                           .environment = {{kName, kSecret}, {"STILL_SECRET_ROLE", "child"}}},
                          absl::Seconds(60));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->exit.ok()) << again->stdout_text << again->stderr_text;
}

TEST(Secret, GoesByDescriptorAsOftenAsItIsRead) {
  auto fd = MakeSecretFd("word\n");
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
  for (int i = 0; i < 2; ++i) EXPECT_EQ(ReadSecretFd(fd->get()).value_or(""), "word");
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  OwnedFd read(pipe[0]), write(pipe[1]);
  ASSERT_TRUE(WriteAll(write.get(), "piped", 5, "pipe").ok());
  write.Reset();
  EXPECT_EQ(ReadSecretFd(read.get()).value_or(""), "piped");
  auto large = MakeSecretFd(std::string((64 << 10) + 1, 'x'));
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(ReadSecretFd(large->get()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace still
