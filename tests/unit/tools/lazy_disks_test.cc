#include "tools/still/lazy_disks.h"

#include <gtest/gtest.h>

namespace still::cli {
namespace {

using stillpoint::session::v1::DescribeResponse;

TEST(DiskStateShown, ADiskThatHoldsTheGuestIsHeldLazyOrNot) {
  DescribeResponse description;
  description.set_state(DescribeResponse::RUNNING);
  EXPECT_EQ(LazyDiskState(description), std::nullopt);
  description.set_state(DescribeResponse::PAUSED);
  EXPECT_EQ(LazyDiskState(description), std::nullopt) << "paused, but not by a disk";
  description.set_disk_trouble("the guest is held: disk vda cannot be written: No space left on device");
  EXPECT_EQ(LazyDiskState(description), "held");
  description.add_lazy_disks()->set_size(100);
  EXPECT_EQ(LazyDiskState(description), "held");
  description.set_state(DescribeResponse::RUNNING);
  EXPECT_EQ(LazyDiskState(description), "lazy") << "it has gone on, and is still told what was wrong";
}

}  // namespace
}  // namespace still::cli
