// Whom commands tell, and that they tell it where nothing answers.
#include "tools/still/schedule_client.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <vector>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::cli {
namespace {

TEST(ConfiguredChannelsTest, AreThoseOfTheServiceAndOverThemThoseOfTheEnvironment) {
  const std::string path = JoinPath(::testing::TempDir(), "still-channels.conf");
  ASSERT_TRUE(WriteFileAtomically(path,
                                  "# Mine.\nhttp=127.0.0.1:1\nwebhook=\"http://of.conf/a=b\"\nmail-to=root\n"
                                  "notify-command=\"logger two words\"\n")
                  .ok());
  ASSERT_EQ(::unsetenv("STILL_NOTIFY_COMMAND"), 0);
  ASSERT_EQ(::setenv("STILL_MAIL_TO", "admin", 1), 0);
  const schedule::AnnouncerOptions options = ConfiguredChannels(path);
  EXPECT_EQ(options.webhook, "http://of.conf/a=b");
  EXPECT_EQ(options.command, "logger two words");
  EXPECT_EQ(options.mail_to, "admin");
  EXPECT_EQ(ConfiguredChannels(path + ".none").mail_to, "admin");
  ASSERT_EQ(::unsetenv("STILL_MAIL_TO"), 0);
  ASSERT_TRUE(RemoveFile(path).ok());
}

TEST(ChooseRepositoryTest, IsTheOneOfTheServiceWhereTheStateIsTheServices) {
  const std::string path = JoinPath(::testing::TempDir(), "still-repository.conf");
  ASSERT_TRUE(WriteFileAtomically(path, "max-running=2\nrepo=\"/srv/back ups\"\n").ok());
  EXPECT_EQ(ChooseRepository("", kServiceState, path), "/srv/back ups");
  EXPECT_EQ(ChooseRepository("/given", kServiceState, path), "/given");
  EXPECT_EQ(ChooseRepository("", "/home/me/state", path), "/home/me/state/repository");
  EXPECT_EQ(ChooseRepository("", kServiceState, path + ".none"), "/var/lib/stillpoint/repository");
  ASSERT_TRUE(RemoveFile(path).ok());
}

// The state directory is where a mount is whose server is gone: whoever opens a file in it waits for good.
TEST(LookWithinLimitTest, WhatHangsIsToldAndTheProcessEnds) {
  std::string state = JoinPath(::testing::TempDir(), "still-hangs-XXXXXX");
  ASSERT_NE(::mkdtemp(state.data()), nullptr);
  ASSERT_EQ(::mkfifo(JoinPath(state, "host-id").c_str(), 0600), 0);
  const std::string told = JoinPath(state, "told");
  ASSERT_EQ(::setenv("STILL_NOTIFY_COMMAND", ("echo \"$STILL_EVENT $STILL_MESSAGE\" >>" + told).c_str(), 1), 0);
  CLI::App app;
  Context context;
  context.AddOptions(app);
  app.parse("--state " + state + " --repo " + state + "/repository");
  const absl::Status hangs = absl::DeadlineExceededError("");
  EXPECT_EXIT((void)LookWithinLimit(context, "stilld does not answer: it is asleep", absl::Milliseconds(50)),
              ::testing::ExitedWithCode(ExitCode(hangs)), "the repository or the book hangs.*; stilld does not answer");
  absl::StatusOr<std::string> words = ReadFile(told, 1 << 16);
  ASSERT_TRUE(words.ok()) << words.status();
  EXPECT_THAT(*words, ::testing::StartsWith("scheduler the schedules cannot be looked at: the repository or the book"));
  EXPECT_THAT(*words, ::testing::HasSubstr(state + "/repository")) << "what to look at";
  ASSERT_EQ(::unsetenv("STILL_NOTIFY_COMMAND"), 0);
  ASSERT_TRUE(RemoveTree(state).ok());
}

TEST(TellWithoutBookHourlyTest, WhatATimerCallsEachMinuteTellsOnceInAnHour) {
  std::string state = JoinPath(::testing::TempDir(), "still-hourly-XXXXXX");
  ASSERT_NE(::mkdtemp(state.data()), nullptr);
  const std::string told = JoinPath(state, "told");
  CLI::App app;
  Context context;
  context.AddOptions(app);
  app.parse("--state " + state);
  const auto tell = [&](const std::string& command) {
    EXPECT_EQ(::setenv("STILL_NOTIFY_COMMAND", command.c_str(), 1), 0);
    const absl::Status why = absl::DataLossError("book.db: damaged");
    EXPECT_EQ(TellWithoutBookHourly(context, why), why);
  };
  const auto lines = [&] {
    absl::StatusOr<std::string> words = ReadFile(told, 1 << 16);
    return words.ok() ? std::count(words->begin(), words->end(), '\n') : 0;
  };
  tell("false");
  for (int minute = 0; minute < 3; ++minute) tell("echo \"$STILL_EVENT $STILL_MESSAGE\" >>" + told);
  EXPECT_EQ(lines(), 1) << "the first call that somebody could be told by";
  struct timespec hour_ago[2] = {{::time(nullptr) - 3601, 0}, {::time(nullptr) - 3601, 0}};
  ASSERT_EQ(::utimensat(AT_FDCWD, JoinPath(state, "told-without-book").c_str(), hour_ago, 0), 0);
  tell("echo again >>" + told);
  EXPECT_EQ(lines(), 2);
  ASSERT_EQ(::unsetenv("STILL_NOTIFY_COMMAND"), 0);
  ASSERT_TRUE(RemoveTree(state).ok());
}

// Or it goes on while the process ends, and frees what is freed by then.
TEST(LookWithinLimitTest, ALookThatIsOverHasLeftNoThread) {
  std::string state = JoinPath(::testing::TempDir(), "still-looks-XXXXXX");
  ASSERT_NE(::mkdtemp(state.data()), nullptr);
  CLI::App app;
  Context context;
  context.AddOptions(app);
  app.parse("--state " + state + " --repo " + state + "/repository");
  const auto threads = [] { return ListDirectory("/proc/self/task").value_or(std::vector<std::string>()).size(); };
  const size_t before = threads();
  for (int i = 0; i < 200; ++i) {
    EXPECT_FALSE(LookWithinLimit(context, "", absl::Minutes(1)).ok()) << "there is no repository";
    ASSERT_EQ(threads(), before) << i;
  }
  ASSERT_TRUE(RemoveTree(state).ok());
}

}  // namespace
}  // namespace still::cli
