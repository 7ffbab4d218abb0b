#include "session/hypervisor/qemu/capture_bitmaps.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"

namespace still::session {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr char kOld[] = "still-0123456789abcdef";  // As version 0.1 called them.

std::string Name(const std::string& owner, int64_t seconds) {
  return BitmapName(owner, absl::FromUnixSeconds(seconds), "c0ffee");
}

TEST(CaptureBitmaps, ANameTellsOwnerAndTime) {
  EXPECT_EQ(Name("7f3a09c2d1e4b586aaaaaaaaaaaaaaaa", 0x692b3a10), "still-7f3a09c2d1e4b586-00692b3a10-c0ffee");
  EXPECT_EQ(Name("", 1), "still-0-0000000001-c0ffee");
  EXPECT_TRUE(IsCaptureBitmap(Name("", 1)));
  EXPECT_TRUE(IsCaptureBitmap(kOld));
  EXPECT_FALSE(IsCaptureBitmap("backup-tool"));
}

TEST(CaptureBitmaps, ACommitDropsTheOthersOfItsRepositoryAndNobodyElses) {
  const std::string old_a = Name("aaaa", 1), abandoned_a = Name("aaaa", 2), new_a = Name("aaaa", 3);
  const std::string b = Name("bbbb", 1);
  EXPECT_THAT(SupersededBitmaps({old_a, abandoned_a, new_a, b, kOld, "backup-tool"}, new_a),
              UnorderedElementsAre(old_a, abandoned_a));
  EXPECT_THAT(SupersededBitmaps({old_a, b}, b), IsEmpty());
  EXPECT_THAT(SupersededBitmaps({kOld, "still-fedcba9876543210", b}, "still-fedcba9876543210"), ElementsAre(kOld));
}

TEST(CaptureBitmaps, TheRepositoriesThatWereSeenLongestAgoAreForgotten) {
  std::vector<std::string> on_disk{"backup-tool"};
  for (size_t i = 0; i < kMaxBitmapOwners; ++i) {
    on_disk.push_back(Name(absl::StrCat("owner", i), 100 + static_cast<int64_t>(i)));
  }
  EXPECT_THAT(SurplusBitmaps(on_disk, ""), IsEmpty());
  on_disk.push_back(kOld);
  EXPECT_THAT(SurplusBitmaps(on_disk, ""), ElementsAre(kOld)) << "without a time it is the oldest";
  on_disk.push_back(Name("new", 200));
  EXPECT_THAT(SurplusBitmaps(on_disk, ""), UnorderedElementsAre(kOld, Name("owner0", 100)));
  EXPECT_THAT(SurplusBitmaps(on_disk, Name("owner0", 100)), Not(Contains(Name("owner0", 100)))) << "it is needed now";
}

TEST(CaptureBitmaps, WhatAbandonedCapturesLeaveIsBounded) {
  std::vector<std::string> on_disk;
  for (int64_t i = 0; i < 20; ++i) on_disk.push_back(Name("aaaa", 100 + i));
  const std::string base = on_disk.front();
  std::vector<std::string> surplus = SurplusBitmaps(on_disk, base);
  EXPECT_EQ(on_disk.size() - surplus.size(), kMaxBitmapsOfAnOwner + 1);
  EXPECT_THAT(surplus, Not(Contains(base)));
  EXPECT_THAT(surplus, Not(Contains(on_disk.back())));
}

}  // namespace
}  // namespace still::session
