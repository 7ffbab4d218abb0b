#include "base/waker.h"

#include <poll.h>

#include <limits>

#include "gtest/gtest.h"

namespace still {
namespace {

bool Readable(const Waker& waker) {
  pollfd fd{waker.fd(), POLLIN, 0};
  return ::poll(&fd, 1, 0) == 1;
}

TEST(WakerTest, IsReadableFromAWakeToItsClear) {
  absl::StatusOr<Waker> waker = Waker::Create();
  ASSERT_TRUE(waker.ok());
  EXPECT_FALSE(Readable(*waker));
  EXPECT_FALSE(waker->Clear());
  waker->Wake();
  waker->Wake();
  EXPECT_TRUE(Readable(*waker));
  EXPECT_TRUE(waker->Clear());
  EXPECT_FALSE(Readable(*waker));
}

TEST(PollTimeoutTest, NeverEndsAWaitTooEarly) {
  EXPECT_EQ(PollTimeout(absl::InfiniteDuration()), -1);
  EXPECT_EQ(PollTimeout(absl::Seconds(-1)), 0);
  EXPECT_EQ(PollTimeout(absl::ZeroDuration()), 0);
  EXPECT_EQ(PollTimeout(absl::Nanoseconds(1)), 1);
  EXPECT_EQ(PollTimeout(absl::Milliseconds(7)), 7);
  EXPECT_EQ(PollTimeout(absl::Microseconds(7001)), 8);
  EXPECT_EQ(PollTimeout(absl::Hours(24 * 365)), std::numeric_limits<int>::max());
}

}  // namespace
}  // namespace still
