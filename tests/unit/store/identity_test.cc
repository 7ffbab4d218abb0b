// Ids against OpenSSL's SHA-256, which identity.cc uses only where it does not hash two blocks at once.
#include "store/block/identity.h"

#include <gtest/gtest.h>
#include <openssl/sha.h>

#include <random>

#include "absl/strings/str_cat.h"

namespace still::store {
namespace {

const std::string& TestKey() {
  static const auto* const key = new std::string("0123456789abcdefghijklmnopqrstuv");
  return *key;
}

BlockId Reference(absl::string_view block) {
  const std::string input = absl::StrCat(TestKey(), std::string(32, '\0'), block);
  unsigned char digest[SHA256_DIGEST_LENGTH];
  ::SHA256(reinterpret_cast<const unsigned char*>(input.data()), input.size(), digest);
  return BlockId::FromBytes({reinterpret_cast<const char*>(digest), BlockId::size()});
}

TEST(IdentityTest, BlocksHashedTogetherHaveTheIdsOfBlocksHashedAlone) {
  std::mt19937_64 random(7);
  IdHasher hasher(TestKey());
  for (size_t count = 0; count <= 9; ++count) {
    for (uint64_t zeros = 0; zeros < 1u << count; ++zeros) {
      SCOPED_TRACE(absl::StrCat(count, " blocks, those of zeros: ", zeros));
      std::string data(count * kBlockSize, '\0');
      for (size_t i = 0; i < count; ++i) {
        if ((zeros >> i & 1) == 0) data[i * kBlockSize + random() % kBlockSize] = static_cast<char>(1 + random() % 255);
      }
      std::vector<BlockId> ids(count, BlockId::FromBytes("left from before"));
      hasher.Blocks(data.data(), absl::MakeSpan(ids));
      for (size_t i = 0; i < count; ++i) {
        const std::string block = data.substr(i * kBlockSize, kBlockSize);
        if ((zeros >> i & 1) != 0) {
          ASSERT_TRUE(ids[i].is_zero());
          continue;
        }
        ASSERT_EQ(ids[i], Reference(block));
        ASSERT_EQ(ids[i], hasher.Block(block.data()));
      }
    }
  }
}

TEST(IdentityTest, EveryBitOfABlockCounts) {
  IdHasher hasher(TestKey());
  const std::string original(kBlockSize, 'x');
  const BlockId before = hasher.Block(original.data());
  for (size_t bit = 0; bit < kBlockSize * 8; bit += 2) {
    std::string two = original + original;
    two[bit / 8] = static_cast<char>(two[bit / 8] ^ (1 << bit % 8));
    BlockId ids[2];
    hasher.Blocks(two.data(), ids);
    ASSERT_EQ(ids[0], Reference(two.substr(0, kBlockSize))) << bit;
    ASSERT_NE(ids[0], before) << bit;
    ASSERT_EQ(ids[1], before) << bit;
  }
}

}  // namespace
}  // namespace still::store
