#include "session/vsock/device/guest_memory.h"

#include <vector>

#include "gtest/gtest.h"

namespace still::vsock {
namespace {

class GuestMemoryTest : public ::testing::Test {
 protected:
  // [0x1000, 0x3000) and [0x3000, 0x4000) adjoin for the guest but not here; [0x10000, 0x11000) stands alone.
  void SetUp() override {
    std::vector<MemoryRegion> regions = {
        {0x10000, 0x1000, User(8)}, {0x1000, 0x2000, User(0)}, {0x3000, 0x1000, User(4)}};
    ASSERT_TRUE(memory.SetRegions(regions.data(), regions.size()));
  }
  uint64_t User(size_t page) { return reinterpret_cast<uint64_t>(bytes.data()) + page * 0x1000; }

  std::vector<uint8_t> bytes = std::vector<uint8_t>(0x10000);
  GuestMemory memory;
};

TEST_F(GuestMemoryTest, TranslatesUpToTheEndOfARegion) {
  uint64_t contiguous = 0;
  EXPECT_EQ(memory.Translate(0x1000, &contiguous), bytes.data());
  EXPECT_EQ(contiguous, 0x2000u);
  EXPECT_EQ(memory.Translate(0x2fff, &contiguous), bytes.data() + 0x1fff);
  EXPECT_EQ(contiguous, 1u);
  EXPECT_EQ(memory.Translate(0x3000, &contiguous), bytes.data() + 0x4000);
  EXPECT_EQ(memory.Translate(0x10fff, &contiguous), bytes.data() + 0x8fff);
}

TEST_F(GuestMemoryTest, NothingLiesOutside) {
  uint64_t contiguous = 0;
  for (uint64_t address : {0x0ull, 0xfffull, 0x4000ull, 0xffffull, 0x11000ull, ~0ull}) {
    EXPECT_EQ(memory.Translate(address, &contiguous), nullptr) << address;
  }
}

TEST_F(GuestMemoryTest, KnowsItsOwnPartOfThisProcess) {
  EXPECT_TRUE(memory.ContainsUser(User(0), 0x2000));
  EXPECT_FALSE(memory.ContainsUser(User(0), 0x2001)) << "the third page is nobody's";
  EXPECT_FALSE(memory.ContainsUser(User(0) - 1, 2));
  EXPECT_TRUE(memory.ContainsUser(User(4), 0x1000));
  EXPECT_FALSE(memory.ContainsUser(User(4), ~0ull));
}

TEST_F(GuestMemoryTest, RefusesMapsThatCannotBe) {
  MemoryRegion overlap[] = {{0x1000, 0x2000, User(0)}, {0x2000, 0x1000, User(4)}};
  MemoryRegion empty[] = {{0x1000, 0, User(0)}};
  MemoryRegion wraps[] = {{~0ull - 0xfff, 0x2000, User(0)}};
  MemoryRegion user_wraps[] = {{0x1000, 0x2000, ~0ull - 0xfff}};
  EXPECT_FALSE(memory.SetRegions(overlap, 2));
  EXPECT_FALSE(memory.SetRegions(empty, 1));
  EXPECT_FALSE(memory.SetRegions(wraps, 1));
  EXPECT_FALSE(memory.SetRegions(user_wraps, 1));
  std::vector<MemoryRegion> many(GuestMemory::kMaxRegions + 1);
  EXPECT_FALSE(memory.SetRegions(many.data(), many.size()));
  uint64_t contiguous = 0;
  EXPECT_NE(memory.Translate(0x1000, &contiguous), nullptr) << "the old map stays";
}

TEST_F(GuestMemoryTest, MarksThePagesThatWereWritten) {
  std::vector<uint8_t> log(8);
  memory.MarkDirty(0x1000, 1);  // Without a log: nothing.
  memory.SetLog(log.data());
  memory.MarkDirty(0x1fff, 2);
  memory.MarkDirty(0x10000, 0);
  EXPECT_EQ(log[0], 0b110);
  memory.MarkDirty(0x10fff, 1);
  EXPECT_EQ(log[2], 0b1);
  memory.MarkDirty(0x10000, ~0ull);  // Never beyond the last page of memory.
  memory.MarkDirty(0x11000, 1);
  EXPECT_EQ(log[2], 0b1);
  EXPECT_EQ(log[3], 0);
}

}  // namespace
}  // namespace still::vsock
