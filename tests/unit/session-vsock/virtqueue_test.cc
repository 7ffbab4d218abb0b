// The ring code against a driver that keeps the rules, and against one that does not.
#include "session/vsock/device/virtqueue.h"

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/unit/session-vsock/fake_driver.h"

namespace still::vsock {
namespace {

constexpr uint16_t kSize = 8;

class VirtqueueTest : public ::testing::Test {
 protected:
  void Start(bool event_index = true, bool writable = false, uint16_t base = 0) {
    std::vector<MemoryRegion> regions = fake.regions();
    ASSERT_TRUE(memory.SetRegions(regions.data(), regions.size()));
    ring = std::make_unique<FakeRing>(&fake, kSize, event_index);
    ring->StartAt(base);
    queue = std::make_unique<Virtqueue>(&memory, writable);
    ASSERT_TRUE(queue->SetSize(kSize));
    ASSERT_TRUE(queue->SetLayout(ring->layout()));
    queue->SetBase(base);
    ASSERT_TRUE(queue->Start(event_index));
  }
  FakeRing::Part Buffer(uint32_t size) { return {fake.Allocate(size), size}; }
  // One descriptor that is not in order, published as a chain.
  Virtqueue::Next PeekRaw(const vring_desc& descriptor) {
    *ring->descriptor(0) = descriptor;
    ring->Publish(0);
    return queue->Peek(&chain);
  }

  FakeMemory fake;
  GuestMemory memory;
  std::unique_ptr<FakeRing> ring;
  std::unique_ptr<Virtqueue> queue;
  Chain chain;
};

TEST_F(VirtqueueTest, GivesChainsInOrderAndTheirPieces) {
  Start();
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kEmpty);
  FakeRing::Part a = Buffer(10);
  FakeRing::Part b = Buffer(20);
  uint16_t first = ring->Add({a, b}, false);
  uint16_t second = ring->Add({b}, false);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  EXPECT_EQ(chain.head, first);
  ASSERT_EQ(chain.count, 2u);
  EXPECT_EQ(chain.bytes, 30u);
  EXPECT_EQ(chain.segments[0].data, fake.At(a.address));
  EXPECT_EQ(chain.segments[1].size, 20u);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain) << "looking takes nothing";
  EXPECT_EQ(chain.head, first);
  queue->Complete(chain, 0);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  EXPECT_EQ(chain.head, second);
  queue->Complete(chain, 7);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kEmpty);
  EXPECT_EQ(ring->Take()->head, first);
  EXPECT_EQ(ring->Take()->length, 7u);
  EXPECT_EQ(queue->base(), 2);
}

TEST_F(VirtqueueTest, ReadsIndirectTables) {
  Start();
  ring->Add({Buffer(1), Buffer(2), Buffer(3)}, false, /*indirect=*/true);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  EXPECT_EQ(chain.count, 3u);
  EXPECT_EQ(chain.bytes, 6u);
}

TEST_F(VirtqueueTest, ABufferMaySpanTwoRegions) {
  // Two regions that adjoin for the guest only.
  std::vector<MemoryRegion> regions = fake.regions();
  uint64_t end = FakeMemory::kLowAddress + FakeMemory::kRegionBytes;
  regions[0].guest_address = end;
  Start();
  ASSERT_TRUE(memory.SetRegions(regions.data(), regions.size()));
  ASSERT_EQ(PeekRaw({end - 16, 64, 0, 0}), Virtqueue::Next::kChain);
  ASSERT_EQ(chain.count, 2u);
  EXPECT_EQ(chain.segments[0].size, 16u);
  EXPECT_EQ(chain.segments[1].size, 48u);
  EXPECT_EQ(chain.segments[1].data, reinterpret_cast<uint8_t*>(regions[0].user_address));
}

TEST_F(VirtqueueTest, EmptyPiecesAreNoPieces) {
  Start();
  ring->Add({{0xdead0000dead0000, 0}, Buffer(5)}, false);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  EXPECT_EQ(chain.count, 1u);
}

TEST_F(VirtqueueTest, IndicesWrapAround) {
  Start(/*event_index=*/true, /*writable=*/false, /*base=*/65535);
  for (int i = 0; i < 20; ++i) {
    ring->Add({Buffer(8)}, false);
    ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
    queue->Complete(chain, 0);
    ASSERT_TRUE(ring->Take().has_value());
  }
  EXPECT_EQ(queue->base(), 19);
}

TEST_F(VirtqueueTest, BrokenChainsStopTheRing) {
  uint64_t good = fake.Allocate(4096);
  uint64_t table = fake.Allocate(4096);
  auto put = [&](size_t index, const vring_desc& entry) {
    std::memcpy(fake.At(table) + index * sizeof entry, &entry, sizeof entry);
  };
  auto* none = static_cast<void (*)()>(nullptr);
  struct Case {
    const char* name;
    vring_desc descriptor;
    std::function<void()> prepare;
  };
  const uint16_t indirect = VRING_DESC_F_INDIRECT;
  const uint16_t next = VRING_DESC_F_NEXT;
  std::vector<Case> cases = {
      {"unmapped", {0x5000000, 16, 0, 0}, none},
      {"runs out of memory", {FakeMemory::kHighAddress + FakeMemory::kRegionBytes - 8, 16, 0, 0}, none},
      {"wraps around the address space", {~0ull - 4, 16, 0, 0}, none},
      {"wrong direction", {good, 16, VRING_DESC_F_WRITE, 0}, none},
      {"next beyond the ring", {good, 16, next, kSize}, none},
      {"a loop", {good, 16, next, 0}, none},
      {"indirect and next",
       {table, 16, static_cast<uint16_t>(indirect | next), 1},
       [&] {
         put(0, {good, 16, 0, 0});
       }},
      {"empty table", {table, 0, indirect, 0}, none},
      {"half an entry", {table, 24, indirect, 0}, none},
      {"unmapped table", {0x5000000, 16, indirect, 0}, none},
      {"table within a table",
       {table, 16, indirect, 0},
       [&] {
         put(0, {table, 16, indirect, 0});
       }},
      {"next beyond the table",
       {table, 16, indirect, 0},
       [&] {
         put(0, {good, 16, next, 1});
       }},
      {"a loop in the table",
       {table, 32, indirect, 0},
       [&] {
         put(0, {good, 16, next, 1});
         put(1, {good, 16, next, 0});
       }},
      {"wrong direction in the table",
       {table, 16, indirect, 0},
       [&] {
         put(0, {good, 16, VRING_DESC_F_WRITE, 0});
       }},
      {"more pieces than a chain may have",
       {table, 4096, indirect, 0},
       [&] {
         for (uint16_t i = 0; i < 256; ++i) put(i, {good, 1, next, static_cast<uint16_t>(i + 1)});
       }},
  };
  for (const Case& test : cases) {
    SCOPED_TRACE(test.name);
    Start();
    if (test.prepare) test.prepare();
    EXPECT_EQ(PeekRaw(test.descriptor), Virtqueue::Next::kBroken);
    EXPECT_FALSE(queue->running());
    EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kEmpty) << "it is not touched again";
    EXPECT_EQ(ring->used_index(), 0);
  }
}

TEST_F(VirtqueueTest, AHeadBeyondTheRingStopsIt) {
  Start();
  ring->Publish(kSize);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kBroken);
}

TEST_F(VirtqueueTest, AnIndexThatJumpsStopsTheRing) {
  Start();
  ring->SetAvailableIndex(kSize + 1);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kBroken);
}

TEST_F(VirtqueueTest, ABrokenRingCanBeStartedAnew) {
  Start();
  ring->Publish(kSize);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kBroken);
  ring->StartAt(0);
  ASSERT_TRUE(queue->Start(true));
  ring->Add({Buffer(8)}, false);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
}

TEST_F(VirtqueueTest, RingsMustLieInGuestMemoryAndBeAligned) {
  Start();
  Virtqueue::Layout layout = ring->layout();
  layout.descriptors += 8;
  EXPECT_FALSE(queue->SetLayout(layout));
  layout = ring->layout();
  layout.used += 2;
  EXPECT_FALSE(queue->SetLayout(layout));
  layout = ring->layout();
  layout.available += 1;
  EXPECT_FALSE(queue->SetLayout(layout));
  alignas(4096) static uint8_t elsewhere[4096];
  for (int which = 0; which < 3; ++which) {
    layout = ring->layout();
    (which == 0   ? layout.descriptors
     : which == 1 ? layout.available
                  : layout.used) = reinterpret_cast<uint64_t>(elsewhere);
    ASSERT_TRUE(queue->SetLayout(layout));
    EXPECT_FALSE(queue->Start(true)) << which;
    EXPECT_FALSE(queue->running());
  }
  EXPECT_FALSE(queue->SetSize(0));
  EXPECT_FALSE(queue->SetSize(12));
  EXPECT_FALSE(queue->SetSize(65536));
}

TEST_F(VirtqueueTest, InterruptsComeWhereTheDriverWantsThem) {
  Start();
  auto complete = [&] {
    ring->Add({Buffer(8)}, false);
    ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
    queue->Complete(chain, 0);
    ring->Take();
  };
  EXPECT_FALSE(queue->NeedsInterrupt()) << "nothing was completed";
  complete();
  EXPECT_TRUE(queue->NeedsInterrupt()) << "the first after a start is always told";
  ring->SetUsedEvent(3);  // Tell me when the fourth is complete.
  complete();
  EXPECT_FALSE(queue->NeedsInterrupt());
  complete();
  EXPECT_FALSE(queue->NeedsInterrupt());
  complete();
  EXPECT_TRUE(queue->NeedsInterrupt());
  EXPECT_FALSE(queue->NeedsInterrupt()) << "once";
  complete();
  EXPECT_FALSE(queue->NeedsInterrupt()) << "not again before the driver asks";
  ring->SetUsedEvent(5);
  complete();
  complete();  // Several at once count as one.
  EXPECT_TRUE(queue->NeedsInterrupt());
}

TEST_F(VirtqueueTest, WithoutEventIndicesAFlagDecides) {
  Start(/*event_index=*/false);
  auto complete = [&] {
    ring->Add({Buffer(8)}, false);
    ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
    queue->Complete(chain, 0);
    ring->Take();
  };
  complete();
  EXPECT_TRUE(queue->NeedsInterrupt());
  EXPECT_FALSE(queue->NeedsInterrupt());
  ring->SetNoInterrupt(true);
  complete();
  EXPECT_FALSE(queue->NeedsInterrupt());
}

TEST_F(VirtqueueTest, AsksForKicksAndSeesWhatCameBefore) {
  Start();
  EXPECT_FALSE(queue->EnableKicks());
  EXPECT_EQ(ring->avail_event(), 0);
  ring->Add({Buffer(8)}, false);
  EXPECT_TRUE(queue->EnableKicks()) << "no kick will come for what was there before the wish";
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  queue->Complete(chain, 0);
  EXPECT_FALSE(queue->EnableKicks());
  EXPECT_EQ(ring->avail_event(), 1);

  Start(/*event_index=*/false);
  queue->DisableKicks();
  EXPECT_EQ(ring->used_flags(), VRING_USED_F_NO_NOTIFY);
  EXPECT_FALSE(queue->EnableKicks());
  EXPECT_EQ(ring->used_flags(), 0);
}

TEST_F(VirtqueueTest, AfterAStopRequestNothingIsCompleted) {
  Start();
  uint16_t head = ring->Add({Buffer(8)}, false);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  queue->RequestStop();
  queue->Complete(chain, 0);
  EXPECT_EQ(ring->used_index(), 0);
  EXPECT_EQ(queue->base(), 0);
  EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kEmpty);
  EXPECT_FALSE(queue->EnableKicks());
  ASSERT_TRUE(queue->Start(true));
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  EXPECT_EQ(chain.head, head) << "the chain is still to be done";
}

TEST_F(VirtqueueTest, AStopBetweenTheTwoIndicesIsMended) {
  Start();
  ring->Add({Buffer(8)}, false);
  ring->Add({Buffer(8)}, false);
  ASSERT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
  queue->Complete(chain, 0);
  queue->RequestStop();
  queue->SetBase(0);  // As the hypervisor was told, while the used ring's write was still under way.
  ASSERT_TRUE(queue->Start(true));
  EXPECT_EQ(queue->base(), 1) << "the driver must not get the same chain twice";
}

TEST_F(VirtqueueTest, WritesToTheUsedRingAreLogged) {
  Start();
  std::vector<uint8_t> log((FakeMemory::kHighAddress + FakeMemory::kRegionBytes) / 4096 / 8);
  memory.SetLog(log.data());
  Virtqueue::Layout layout = ring->layout();
  auto marked = [&] {
    uint64_t page = layout.used_guest_address / 4096;
    bool set = (log[page / 8] >> (page % 8) & 1) != 0;
    log[page / 8] = 0;
    return set;
  };
  auto complete = [&] {
    ring->Add({Buffer(8)}, false);
    EXPECT_EQ(queue->Peek(&chain), Virtqueue::Next::kChain);
    queue->Complete(chain, 0);
    ring->Take();
  };
  complete();
  EXPECT_FALSE(marked()) << "not asked for";
  layout.log_used = true;
  ASSERT_TRUE(queue->SetLayout(layout));
  complete();
  EXPECT_TRUE(marked());
  queue->EnableKicks();
  EXPECT_TRUE(marked());
}

}  // namespace
}  // namespace still::vsock
