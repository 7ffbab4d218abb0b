#include "store/pack/block_index.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/clock.h"
#include "store/object/directory_store.h"
#include "store/pack/pack_writer.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

class BlockIndexTest : public ::testing::Test {
 protected:
  BlockIndexTest()
      : objects_(DirectoryObjectStore::Open(directory_.path()).value()),
        packs_(*objects_, nullptr),
        scratch_(absl::string_view(key_)) {}

  // A pack of `count` random ids, on disk: its footer is all the index reads.
  PackNumber MakePack(std::mt19937_64& random, uint32_t count) {
    std::vector<BlockId> ids(count);
    for (BlockId& id : ids) {
      for (unsigned char& byte : id.bytes) byte = static_cast<unsigned char>(random());
    }
    auto writer = PackWriter::Begin(packs_, PackKind::kData, absl::UnixEpoch()).value();
    std::string frame;
    scratch_.codec.Encode(FrameKind::kGroup, {.object = writer->object()}, true, std::string(kGroupSize, 'x'), frame);
    for (uint32_t i = 0; i * kBlocksPerGroup < count; ++i) EXPECT_TRUE(writer->AddFrame(i, frame).ok());
    auto ended = writer->End(ids, {}, scratch_.codec).value();
    EXPECT_TRUE(objects_->Publish(std::move(ended.object)).ok());
    summaries_[writer->number()] = ended.summary;
    ids_[writer->number()] = std::move(ids);
    return writer->number();
  }

  const std::string key_ = std::string(32, 'k');
  TemporaryDirectory directory_;
  std::unique_ptr<DirectoryObjectStore> objects_;
  PackSet packs_;
  Scratch scratch_;
  std::map<PackNumber, PackSummary> summaries_;
  std::map<PackNumber, std::vector<BlockId>> ids_;
};

TEST_F(BlockIndexTest, ACompleteIndexFindsEveryBlockAndNothingElse) {
  std::mt19937_64 random(1);
  BlockIndex index(packs_);
  for (int i = 0; i < 5; ++i) index.LoadPack(MakePack(random, 1000), scratch_);
  for (const auto& [pack, ids] : ids_) {
    for (uint32_t block = 0; block < ids.size(); ++block) {
      const BlockPlace expected = {.pack = pack, .block = block};
      ASSERT_EQ(index.Find(ids[block], scratch_), expected);
      ASSERT_EQ(index.IdAt(expected, scratch_), ids[block]);
      BlockId other = ids[block];
      other.bytes[15] ^= 1;
      ASSERT_EQ(index.Find(other, scratch_), std::nullopt);
    }
  }
  EXPECT_EQ(index.IdAt({.pack = ids_.begin()->first, .block = 1000}, scratch_), std::nullopt);
}

TEST_F(BlockIndexTest, ASparseIndexFindsRunsAndStaysWithinItsMemory) {
  std::mt19937_64 random(2);
  const BlockIndexLimits limits = {.loaded_blocks = 4000, .hooks = 100000};
  BlockIndex index(packs_, limits);
  for (int i = 0; i < 20; ++i) {
    const PackNumber pack = MakePack(random, 1000);
    index.AddHooks(pack, summaries_[pack].hooks, kHookModulus);
  }
  size_t found = 0;
  size_t largest = 0;
  for (int round = 0; round < 3; ++round) {
    for (const auto& [pack, ids] : ids_) {
      for (uint32_t block = 0; block < ids.size(); ++block) {
        auto place = index.Find(ids[block], scratch_);
        if (!place) continue;
        ++found;
        const BlockPlace expected = {.pack = pack, .block = block};
        ASSERT_EQ(*place, expected);
      }
      largest = std::max(largest, index.footprint());
    }
  }
  // A run of 1000 is found from its first hook on, the 16th block or so.
  EXPECT_GT(found, 60000 * 95 / 100);
  EXPECT_LT(largest, 400 * 1024);
  EXPECT_LE(index.packs_loaded(), 60);
}

TEST_F(BlockIndexTest, WhatIsWrittenIsFoundAtOnceAndAfterItsTableWentByItsHooks) {
  std::mt19937_64 random(3);
  BlockIndex index(packs_, {.loaded_blocks = 1500});
  const PackNumber first = MakePack(random, 1000);
  const PackNumber second = MakePack(random, 1000);
  for (PackNumber pack : {first, second}) {
    index.BeginPack(pack);
    for (const BlockId& id : ids_[pack]) {
      index.Append(pack, id);
      ASSERT_TRUE(index.Find(id, scratch_).has_value());
    }
  }
  size_t found = 0;
  for (const BlockId& id : ids_[first]) found += index.Find(id, scratch_).has_value();
  EXPECT_GT(found, 900);
}

TEST_F(BlockIndexTest, ExcludedAndDamagedPacksAreNotUsed) {
  std::mt19937_64 random(4);
  BlockIndex index(packs_);
  const PackNumber excluded = MakePack(random, 100);
  const PackNumber damaged = MakePack(random, 100);
  index.Exclude(excluded);
  index.LoadPack(excluded, scratch_);
  ASSERT_TRUE(objects_->Delete(PackObject(packs_.NameOf(damaged))).ok());
  index.LoadPack(damaged, scratch_);
  for (PackNumber pack : {excluded, damaged}) {
    EXPECT_EQ(index.Find(ids_[pack][0], scratch_), std::nullopt);
    EXPECT_EQ(index.IdAt({.pack = pack, .block = 0}, scratch_), std::nullopt);
  }
}

TEST(BlockIndexModulus, GrowsWithTheRepository) {
  EXPECT_EQ(BlockIndex::ChooseModulus(1'000'000), 1);
  EXPECT_EQ(BlockIndex::ChooseModulus(1'000'001), 16);
  EXPECT_EQ(BlockIndex::ChooseModulus(100'000'000), 64);
}

}  // namespace
}  // namespace still::store
