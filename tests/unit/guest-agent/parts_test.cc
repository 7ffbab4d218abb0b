// The small parts: options, addresses, backoff, timer, log, marker.
#include <fcntl.h>
#include <poll.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest-agent/connection.h"
#include "guest-agent/freeze_marker.h"
#include "guest-agent/options.h"
#include "guest-agent/quiet_log.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::HasSubstr;

TEST(OptionsTest, TheKernelsCommandLineGivesThePort) {
  auto options = ParseOptions({});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->endpoint.ToString(), "vsock:2:1024");
  ASSERT_TRUE(ApplyKernelCommandLine("console=ttyS0 still.port=2048 still.other=1 quiet\n", *options).ok());
  EXPECT_EQ(options->endpoint.ToString(), "vsock:2:2048");
  EXPECT_FALSE(options->off);
  ASSERT_TRUE(ApplyKernelCommandLine("still.agent=off", *options).ok());
  EXPECT_TRUE(options->off);
  EXPECT_EQ(ApplyKernelCommandLine("still.port=x", *options).code(), absl::StatusCode::kInvalidArgument);
}

TEST(OptionsTest, AnAddressOnTheCommandLineWins) {
  auto options = ParseOptions({"--connect=unix:/x/y", "--marker", "/m", "--no-guardian"});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->endpoint.path, "/x/y");
  EXPECT_EQ(options->cmdline, "");
  EXPECT_EQ(options->marker, "/m");
  EXPECT_FALSE(options->guardian);
}

TEST(OptionsTest, WhatIsWrongIsNamed) {
  for (std::vector<std::string> arguments : std::vector<std::vector<std::string>>{{"--nope"},
                                                                                  {"--connect"},
                                                                                  {"--connect", "tcp:1"},
                                                                                  {"--connect", "vsock:x"},
                                                                                  {"--connect", "vsock:1:2:3"},
                                                                                  {"--connect", "unix:"},
                                                                                  {"--listen", "vsock:1"},
                                                                                  {"--help=x"}}) {
    auto options = ParseOptions(arguments);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument) << arguments.back();
  }
}

TEST(EndpointTest, AHostWithoutAListenerIsUnavailableOrNotFound) {
  TempDir directory;
  Endpoint endpoint{.kind = Endpoint::Kind::kUnix, .path = directory / "nobody"};
  EXPECT_FALSE(Dial(endpoint).ok());
}

TEST(BackoffTest, BeginsAtOnceDoublesAndStaysUnderASecond) {
  Backoff backoff;
  EXPECT_EQ(backoff.Next(), absl::ZeroDuration());
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(10));
  EXPECT_EQ(backoff.Next(), absl::Milliseconds(20));
  for (int i = 0; i < 20; ++i) backoff.Next();
  EXPECT_EQ(backoff.Next(), absl::Seconds(1));
  backoff.Reset();
  EXPECT_EQ(backoff.Next(), absl::ZeroDuration());
}

TEST(LeaseTimerTest, FiresOnceWhenItsTimeHasComeAndNotWhenDisarmed) {
  auto timer = MakeKernelLeaseTimer();
  ASSERT_TRUE(timer.ok()) << timer.status();
  std::atomic<int> fired = 0;
  std::atomic<absl::Duration> at;
  (*timer)->OnFire([&] {
    at = Clock::Real().Monotonic();
    ++fired;
  });
  absl::Duration deadline = Clock::Real().Monotonic() + absl::Milliseconds(50);
  (*timer)->Arm(Clock::Real().Monotonic() + absl::Hours(1));
  (*timer)->Arm(deadline);
  EXPECT_TRUE(Eventually([&] { return fired == 1; }));
  EXPECT_GE(at.load(), deadline);
  (*timer)->Arm(Clock::Real().Monotonic() + absl::Hours(1));
  (*timer)->Disarm();
  (*timer)->Arm(absl::ZeroDuration());  // Long past.
  EXPECT_TRUE(Eventually([&] { return fired == 2; }));
}

TEST(QuietLogTest, LinesWaitUntilWritingIsSafeAndAreBounded) {
  std::string written;
  QuietLog log([&written](absl::string_view line) { absl::StrAppend(&written, line); });
  log.Line("before\n");
  EXPECT_EQ(written, "before\n");
  log.SetQuiet(true);
  for (size_t i = 0; i < QuietLog::kMaxLines + 3; ++i) log.Line(absl::StrCat("line ", i, "\n"));
  log.Line(std::string(5000, 'x') + "\n");
  EXPECT_EQ(written, "before\n");
  log.SetQuiet(false);
  EXPECT_THAT(written, HasSubstr("before\n4 log lines were dropped while frozen\nline 4\nline 5\n"));
  EXPECT_EQ(written.substr(written.size() - 3), "xx\n");
  EXPECT_LT(written.size(), QuietLog::kMaxLines * 12 + QuietLog::kMaxLineBytes + 100);
  written.clear();
  log.Line("after\n");
  EXPECT_EQ(written, "after\n");
}

TEST(FreezeMarkerTest, WhatIsWrittenIsReadBack) {
  TempDir directory;
  FreezeMarker marker(directory / "frozen");
  EXPECT_FALSE(marker.Exists());
  ASSERT_TRUE(marker.Write({"tok\nen", {{21, "/", true}, {30, "/with space\n\xff", false}}}).ok());
  EXPECT_TRUE(marker.Exists());
  auto read = marker.Read();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->token, "tok\nen");
  ASSERT_EQ(read->mounts.size(), 2u);
  EXPECT_EQ(read->mounts[0].mount_id, 21);
  EXPECT_EQ(read->mounts[1].mount_point, "/with space\n\xff");
  ASSERT_TRUE(marker.Remove().ok());
  EXPECT_FALSE(marker.Exists());
}

TEST(FreezeMarkerTest, ADamagedMarkerIsSaidToBeSo) {
  TempDir directory;
  FreezeMarker marker(directory / "frozen");
  for (const char* content :
       {"", "x\n", "still-freeze 1 t\n21", "still-freeze 1 t\nx /\n", "still-freeze 1 t\n21 \\q\n"}) {
    ASSERT_TRUE(WriteFileAtomically(marker.path(), content).ok());
    EXPECT_EQ(marker.Read().status().code(), absl::StatusCode::kDataLoss) << content;
  }
}

TEST(FreezeMarkerTest, AMarkerOnAFileSystemToBeFrozenIsRefused) {
  TempDir directory;
  FreezeMarker marker(directory / "sub/frozen");
  // The real mount that the directory lies on, as if it were to be frozen.
  auto text = ReadFile("/proc/self/mountinfo", kMaxMountTableBytes);
  ASSERT_TRUE(text.ok());
  MountSurvey survey;
  survey.mounts = *ParseMountTable(*text);
  const MountEntry* mount = MountOfPath(survey.mounts, directory.path());
  ASSERT_NE(mount, nullptr);
  FreezePlan plan;
  plan.file_systems.push_back({.device = mount->device, .fs_type = "any", .device_name = "", .mounts = {}});
  EXPECT_EQ(marker.CheckOutside(survey, plan).code(), absl::StatusCode::kFailedPrecondition);
  plan.file_systems[0].device.minor += 1000;
  EXPECT_TRUE(marker.CheckOutside(survey, plan).ok());
}

}  // namespace
}  // namespace still::agent
