#include "tools/still/progress_bar.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/fd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::cli {
namespace {

using snapshot::Progress;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kMiB = 1 << 20;

TEST(RateMeterTest, AnEvenSpeedIsThatSpeed) {
  RateMeter meter;
  for (int i = 0; i <= 20; ++i) meter.Add(absl::Seconds(i), static_cast<uint64_t>(i) * 10 * kMiB);
  EXPECT_NEAR(meter.rate(), 10.0 * kMiB, 1);
}

TEST(RateMeterTest, NothingIsKnownAtTheStartOrFromTooShortASpan) {
  RateMeter meter;
  EXPECT_EQ(meter.rate(), 0);
  meter.Add(absl::Seconds(1), 5);
  meter.Add(absl::Seconds(1) + absl::Milliseconds(1), 5000);
  EXPECT_EQ(meter.rate(), 0);
}

TEST(RateMeterTest, TheOldSpeedIsForgotten) {
  RateMeter meter;
  uint64_t done = 0;
  for (int i = 0; i < 60; ++i) meter.Add(absl::Seconds(i), done += 100 * kMiB);
  for (int i = 60; i < 90; ++i) meter.Add(absl::Seconds(i), done += kMiB);
  EXPECT_LT(meter.rate(), 2.0 * kMiB) << "a mean of everything would say 67";
}

TEST(RateMeterTest, GoingBackBeginsAnew) {
  RateMeter meter;
  meter.Add(absl::Seconds(0), 0);
  meter.Add(absl::Seconds(1), 100);
  meter.Add(absl::Seconds(2), 10);
  EXPECT_EQ(meter.rate(), 0);
}

TEST(ProgressLineTest, ShowsShareSizeRateAndRest) {
  const Progress half = {.stage = "restore vda", .done = 512 * kMiB, .total = 1024 * kMiB};
  const std::string line = ProgressLine(half, 20.48 * kMiB, 0);
  EXPECT_EQ(line, "restore vda      [############            ]  50%  1.0 GiB  20.5 MiB/s  25 s left");
  EXPECT_EQ(ProgressSentence(half, 20.48 * kMiB), "restore vda: 50% of 1.0 GiB, 20.5 MiB/s, 25 s left");
}

TEST(ProgressLineTest, SaysNothingThatIsNotKnown) {
  EXPECT_THAT(ProgressLine({.stage = "drain", .done = 0, .total = kMiB}, 0, 0), Not(HasSubstr("left")));
  EXPECT_EQ(ProgressSentence({.stage = "boot"}, 5), "boot...");
  EXPECT_THAT(ProgressLine({.stage = "drain", .done = 3 * kMiB, .total = 0}, 0, 0), HasSubstr("3.0 MiB"));
}

TEST(ProgressLineTest, NeverWrapsAndMoreThanAllIsAll) {
  const Progress over = {.stage = "commit", .done = 2 * kMiB, .total = kMiB};
  EXPECT_THAT(ProgressLine(over, kMiB, 0), HasSubstr("100%"));
  EXPECT_THAT(ProgressLine(over, kMiB, 0), HasSubstr("0 s left"));
  for (size_t width = 1; width < 120; ++width) EXPECT_LT(ProgressLine(over, kMiB, width).size(), width);
}

TEST(ProgressBarTest, WhatIsNoTerminalGetsNoControlCharactersAndNothingOfShortStages) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  OwnedFd read_end(ends[0]);
  OwnedFd write_end(ends[1]);
  ProgressBar bar(write_end.get());
  for (uint64_t i = 0; i < 100; ++i) bar.Update({.stage = "drain", .done = i, .total = 100});
  bar.Finish();
  char byte;
  EXPECT_EQ(::read(read_end.get(), &byte, 1), -1) << "a stage of milliseconds is not worth a line";
}

}  // namespace
}  // namespace still::cli
