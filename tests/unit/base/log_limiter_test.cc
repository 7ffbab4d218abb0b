#include "base/log_limiter.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace still {
namespace {

class LimiterClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + now; }
  absl::Duration Monotonic() const override { return now; }
  void Sleep(absl::Duration duration) override { now += duration; }

  absl::Duration now;
};

TEST(LogLimiter, OneLineAMinuteTellsHowManyWereLeftOut) {
  LimiterClock clock;
  LogLimiter limiter(clock);
  EXPECT_EQ(limiter.Admit(), 0u) << "the first is written, also when the clock has just begun";
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(limiter.Admit(), std::nullopt);
  clock.now += absl::Seconds(59);
  EXPECT_EQ(limiter.Admit(), std::nullopt);
  clock.now += absl::Seconds(1);
  EXPECT_EQ(limiter.Admit(), 1001u);
  EXPECT_EQ(limiter.Admit(), std::nullopt);
  clock.now += absl::Hours(1);
  EXPECT_EQ(limiter.Admit(), 1u) << "counted since the last line, not since the first";
  clock.now += absl::Minutes(1);
  EXPECT_EQ(limiter.Admit(), 0u);
}

// However often somebody causes it: n periods are n lines, and no line is lost from the count.
TEST(LogLimiter, AFloodOfADayIsALineAMinute) {
  LimiterClock clock;
  LogLimiter limiter(clock);
  uint64_t lines = 0;
  uint64_t told = 0;
  constexpr uint64_t kTimes = 24 * 3600;
  for (uint64_t second = 0; second < kTimes; ++second) {
    if (std::optional<uint64_t> left_out = limiter.Admit()) {
      ++lines;
      told += 1 + *left_out;
    }
    clock.now += absl::Seconds(1);
  }
  EXPECT_EQ(lines, 24u * 60);
  EXPECT_LE(kTimes - told, 60u) << "those since the last line";
}

TEST(LogLimiter, SeveralThreadsGetOneLineTogether) {
  LimiterClock clock;
  LogLimiter limiter(clock);
  std::atomic<int> lines = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 1000; ++n) lines += limiter.Admit().has_value() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(lines, 1);
  clock.now += absl::Minutes(1);
  EXPECT_EQ(limiter.Admit(), 7999u);
}

}  // namespace
}  // namespace still
