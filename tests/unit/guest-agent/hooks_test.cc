// Real programs in a directory of the test's own.
#include "guest-agent/hooks.h"

#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class HooksTest : public ::testing::Test {
 protected:
  std::string Put(const std::string& path, const std::string& script, mode_t mode = 0755) {
    std::string full = directory_ / path;
    EXPECT_TRUE(MakeDirectories(full.substr(0, full.rfind('/'))).ok());
    EXPECT_TRUE(WriteFileAtomically(full, "#!/bin/sh\n" + script, mode).ok());
    return full;
  }
  pb::HookResult Run(const std::string& path, const std::string& verb = "freeze",
                     absl::Duration timeout = absl::Seconds(20)) {
    return hooks_.Run(path, verb, timeout, [this] { return cancelled_; });
  }
  TempDir directory_;
  bool cancelled_ = false;
  HookPrograms hooks_{
      HookDirectories{.own = directory_ / "own",
                      .qemu = {{directory_ / "q.d", directory_ / "q"}, {directory_ / "ga/q.d", directory_ / "ga/q"}}}};
};

TEST_F(HooksTest, OursComeFirstThenQemusEachByName) {
  Put("own/20-b", "");
  Put("own/10-a", "");
  Put("q.d/mysql", "");
  Put("q", "");  // Only the wrapper of the directory.
  EXPECT_THAT(hooks_.List(), ElementsAre(directory_ / "own/10-a", directory_ / "own/20-b", directory_ / "q.d/mysql"));
}

TEST_F(HooksTest, WithoutQemusDirectoryItsSingleHookIsRun) {
  Put("q", "");
  EXPECT_THAT(hooks_.List(), ElementsAre(directory_ / "q"));
}

TEST_F(HooksTest, EveryDistributionsHooksAreRunOnceEach) {
  Put("q.d/10-db", "");
  Put("ga/q.d/20-web", "");
  ASSERT_EQ(::symlink((directory_ / "q.d/10-db").c_str(), (directory_ / "ga/q.d/10-db").c_str()), 0);
  EXPECT_THAT(hooks_.List(), ElementsAre(directory_ / "q.d/10-db", directory_ / "ga/q.d/20-web"));
}

TEST_F(HooksTest, ALinkToAnotherPlacesWrapperIsNoHook) {
  Put("q", "");
  Put("q.d/db", "");
  ASSERT_TRUE(MakeDirectories(directory_ / "ga", 0755).ok());
  ASSERT_EQ(::symlink((directory_ / "q").c_str(), (directory_ / "ga/q").c_str()), 0);
  EXPECT_THAT(hooks_.List(), ElementsAre(directory_ / "q.d/db"));
}

TEST_F(HooksTest, ASingleHookThatIsALinkToAnotherIsRunOnce) {
  Put("q", "");
  ASSERT_TRUE(MakeDirectories(directory_ / "ga", 0755).ok());
  ASSERT_EQ(::symlink((directory_ / "q").c_str(), (directory_ / "ga/q").c_str()), 0);
  EXPECT_THAT(hooks_.List(), ElementsAre(directory_ / "q"));
}

TEST_F(HooksTest, LeftoversAndWhatIsNotExecutableAreNoHooks) {
  for (const char* name : {"a~", "a.bak", "a.orig", "a.rpmnew", "a.rpmsave", "a.rpmorig", "a.sample", "a.dpkg-old",
                           "a.dpkg-new", "a.dpkg-tmp", ".hidden"}) {
    Put(absl::StrCat("q.d/", name), "");
  }
  Put("q.d/not-executable", "", 0644);
  ASSERT_TRUE(MakeDirectories(directory_ / "q.d/directory", 0755).ok());
  EXPECT_THAT(hooks_.List(), IsEmpty());
}

TEST_F(HooksTest, AHookGetsItsVerbNothingOnStdinAndASessionOfItsOwn) {
  std::string path = Put("own/h", "echo \"$# $1\"; cat; echo oops >&2; cut -d' ' -f6 /proc/$$/stat; echo $$; exit 3\n");
  pb::HookResult result = Run(path, "thaw");
  EXPECT_EQ(result.exit_code(), 3);
  EXPECT_EQ(result.verb(), "thaw");
  std::vector<std::string> lines = absl::StrSplit(result.output(), '\n');
  ASSERT_GE(lines.size(), 4u);
  EXPECT_EQ(lines[0], "1 thaw");
  EXPECT_EQ(lines[1], "oops");
  EXPECT_EQ(lines[2], lines[3]);
}

TEST_F(HooksTest, OnlyTheEndOfItsOutputIsKept) {
  pb::HookResult result = Run(Put("own/h", "yes | head -c 200000; echo END\n"));
  EXPECT_EQ(result.exit_code(), 0);
  EXPECT_LE(result.output().size(), 1024u);
  EXPECT_THAT(result.output(), HasSubstr("END"));
}

TEST_F(HooksTest, AtItsDeadlineTheWholeGroupIsKilled) {
  const std::string hook = Put("own/h", "sleep 1000 & echo $!; wait\n");
  pb::HookResult result;
  pid_t background = 0;
  // A busy host may need longer than the deadline to start it.
  for (absl::Duration deadline = absl::Milliseconds(300); background == 0 && deadline < absl::Minutes(5);
       deadline *= 4) {
    result = Run(hook, "freeze", deadline);
    background = std::atoi(result.output().c_str());
  }
  ASSERT_NE(background, 0) << result.output();
  EXPECT_EQ(result.exit_code(), -1);
  EXPECT_THAT(result.output(), HasSubstr("deadline"));
  EXPECT_TRUE(Eventually([&] { return !IsRunning(background); }));
}

TEST_F(HooksTest, AFreezeThatIsGivenUpKillsItsHook) {
  cancelled_ = true;
  pb::HookResult result = Run(Put("own/h", "sleep 1000\n"));
  EXPECT_EQ(result.exit_code(), -1);
  EXPECT_THAT(result.output(), HasSubstr("given up"));
}

TEST_F(HooksTest, AProcessThatAHookLeavesBehindDoesNotHoldItUp) {
  pb::HookResult result = Run(Put("own/h", "sleep 1000 & echo $!\n"));
  EXPECT_EQ(result.exit_code(), 0);
  ::kill(std::stoi(result.output()), SIGKILL);
}

TEST_F(HooksTest, WhatCannotRunOrDiesIsAFailure) {
  EXPECT_EQ(Run(directory_ / "nothing").exit_code(), -1);
  EXPECT_EQ(Run(Put("own/h", "kill -9 $$\n")).exit_code(), 128 + 9);
}

TEST_F(HooksTest, OutputThatIsNoTextIsMadeText) { EXPECT_EQ(Run(Put("own/h", "printf 'a\\377b'\n")).output(), "a?b"); }

}  // namespace
}  // namespace still::agent
