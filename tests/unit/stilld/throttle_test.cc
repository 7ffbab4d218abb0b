// Throttle: how much time it takes, by a clock of our own.
#include "schedule/throttle.h"

#include <stdlib.h>

#include <memory>
#include <string>

#include "base/file.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

class SleepingClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + slept; }
  absl::Duration Monotonic() const override { return slept; }
  void Sleep(absl::Duration duration) override { slept += duration; }
  absl::Duration slept;
};

TEST(ThrottleTest, NoFasterThanAskedForAfterTheFirstSecond) {
  SleepingClock clock;
  Throttle throttle(1000, clock);
  for (int i = 0; i < 100; ++i) throttle.Take(500);
  EXPECT_LT(absl::AbsDuration(clock.slept - absl::Seconds(49)), absl::Milliseconds(1));
  clock.slept += absl::Hours(1);
  const absl::Duration before = clock.slept;
  throttle.Take(1000);
  EXPECT_EQ(clock.slept, before) << "after a rest a second's worth may go at once";
  throttle.Take(1000);
  EXPECT_GT(clock.slept, before) << "but no more than that";
}

TEST(ThrottleTest, ReadingAndWritingShareOneLimit) {
  SleepingClock clock;
  Throttle throttle(1000, clock);
  std::string directory = JoinPath(::testing::TempDir(), "still-throttle-XXXXXX");
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  ThrottledFileSystem slow(FileSystem::Real(), throttle);
  {
    absl::StatusOr<std::unique_ptr<WritableFile>> file = slow.CreateFile(JoinPath(directory, "a"));
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->Append(std::string(5000, 'x')).ok());
  }
  EXPECT_LT(absl::AbsDuration(clock.slept - absl::Seconds(4)), absl::Milliseconds(1));
  std::string back(5000, '\0');
  ASSERT_TRUE(slow.ReadRange(JoinPath(directory, "a"), 0, absl::MakeSpan(back)).ok());
  EXPECT_EQ(back, std::string(5000, 'x'));
  EXPECT_LT(absl::AbsDuration(clock.slept - absl::Seconds(9)), absl::Milliseconds(1));
  EXPECT_TRUE(RemoveTree(directory).ok());
}

}  // namespace
}  // namespace still::schedule
