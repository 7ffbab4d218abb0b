#include "base/child_watch.h"

#include <signal.h>

#include <atomic>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/process.h"
#include "gtest/gtest.h"

namespace still {
namespace {

// Longer than any machine takes for what is waited for; whatever waits so long hangs.
constexpr absl::Duration kPatience = absl::Seconds(100);

struct Heard {
  WatchedEnd end;
  std::string text;
};

absl::StatusOr<Heard> Watch(const std::string& script, ChildWatchOptions options = {}) {
  Heard heard;
  STILL_ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
  STILL_RETURN_IF_ERROR(SetNonBlocking(pipe.read_end.get()));
  STILL_ASSIGN_OR_RETURN(
      ChildProcess child,
      ChildProcess::Start({.argv = {"sh", "-c", script}, .stdout_fd = pipe.write_end.get(), .new_session = true}));
  pipe.write_end.Reset();
  options.streams.push_back({pipe.read_end.get(), [&heard](absl::string_view text) {
                               heard.text.append(text.data(), text.size());
                               return true;
                             }});
  options.kill_group = true;
  STILL_ASSIGN_OR_RETURN(heard.end, WatchChild(child, options));
  ::kill(-child.pid(), SIGKILL);  // What the script left behind.
  return heard;
}

TEST(ChildWatchTest, HearsAllThatWasWrittenBeforeTheEnd) {
  absl::StatusOr<Heard> heard = Watch("printf one; printf two; exit 3");
  ASSERT_TRUE(heard.ok()) << heard.status();
  EXPECT_EQ(heard->text, "onetwo");
  EXPECT_EQ(heard->end.exit.exit_code, 3);
  EXPECT_FALSE(heard->end.killed);
}

TEST(ChildWatchTest, AProgramLeftBehindHoldsNothingUp) {
  const absl::Duration begun = Clock::Real().Monotonic();
  absl::StatusOr<Heard> heard = Watch("echo said; sleep 1000 &");
  ASSERT_TRUE(heard.ok()) << heard.status();
  EXPECT_EQ(heard->text, "said\n");
  EXPECT_EQ(heard->end.exit.exit_code, 0);
  EXPECT_LT(Clock::Real().Monotonic() - begun, kPatience);
}

TEST(ChildWatchTest, KillsTheGroupWhenItsTimeIsOver) {
  absl::StatusOr<Heard> heard = Watch("sleep 1000 & echo $!; wait", {.kill_at = [] { return absl::ZeroDuration(); }});
  ASSERT_TRUE(heard.ok()) << heard.status();
  EXPECT_TRUE(heard->end.killed);
  EXPECT_EQ(heard->end.exit.signal, SIGKILL);
}

TEST(ChildWatchTest, AWakeBringsTheKillForward) {
  absl::StatusOr<Waker> waker = Waker::Create();
  ASSERT_TRUE(waker.ok());
  std::atomic<bool> now = false;
  std::thread other([&] {
    now = true;
    waker->Wake();
  });
  absl::StatusOr<Heard> heard =
      Watch("sleep 1000",
            {.kill_at = [&now] { return now ? absl::ZeroDuration() : absl::InfiniteDuration(); }, .waker = &*waker});
  other.join();
  ASSERT_TRUE(heard.ok()) << heard.status();
  EXPECT_TRUE(heard->end.killed);
}

TEST(ChildWatchTest, AListenerMayHaveHeardEnough) {
  int pieces = 0;
  absl::StatusOr<Pipe> pipe = MakePipe();
  ASSERT_TRUE(pipe.ok());
  ASSERT_TRUE(SetNonBlocking(pipe->read_end.get()).ok());
  auto child = ChildProcess::Start(
      {.argv = {"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo $i; done"}, .stdout_fd = pipe->write_end.get()});
  ASSERT_TRUE(child.ok());
  auto once = [&pieces](absl::string_view) {
    ++pieces;
    return false;
  };
  ASSERT_TRUE(WatchChild(*child, {.streams = {{pipe->read_end.get(), once}}}).ok());
  EXPECT_EQ(pieces, 1);
}

TEST(RunCommandTest, ABackgroundProgramDoesNotHoldTheCommand) {
  const absl::Duration begun = Clock::Real().Monotonic();
  absl::StatusOr<CommandOutput> output =
      RunCommand({.argv = {"sh", "-c", "sleep 20 & echo done"}}, absl::Seconds(1000));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->stdout_text, "done\n");
  EXPECT_LT(Clock::Real().Monotonic() - begun, absl::Seconds(15));
}

}  // namespace
}  // namespace still
