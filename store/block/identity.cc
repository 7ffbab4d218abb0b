#include "store/block/identity.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <optional>

#include "base/check.h"
#include "store/block/sha256_pair.h"

namespace still::store {
namespace {

constexpr size_t kKeySize = 32;
constexpr size_t kTypeSize = 32;

BlockId BlockIdOf(const Sha256Digest& digest) {
  BlockId id;
  std::copy_n(digest.begin(), id.size(), id.bytes.begin());
  return id;
}

// Fetched once: an implicit fetch for every block would cost a tenth of the hash itself.
const EVP_MD* Sha256() {
  static const EVP_MD* md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  STILL_CHECK(md != nullptr);
  return md;
}

}  // namespace

template <size_t kSize>
ContentId<kSize> ContentId<kSize>::FromBytes(absl::string_view bytes) {
  STILL_CHECK(bytes.size() == kSize);
  ContentId id;
  std::memcpy(id.bytes.data(), bytes.data(), kSize);
  return id;
}
template struct ContentId<16>;
template struct ContentId<32>;

bool IsZero(const char* data, size_t size) {
  // Most blocks that are not zero show it at once; memcmp with itself, shifted, runs at memory speed for the others.
  if (size == 0) return true;
  if (data[0] != 0) return false;
  return std::memcmp(data, data + 1, size - 1) == 0;
}

IdHasher::IdHasher(absl::string_view hash_key) : hash_key_(hash_key), context_(EVP_MD_CTX_new()) {
  STILL_CHECK(hash_key_.size() == kKeySize && context_ != nullptr);
}

IdHasher::~IdHasher() { EVP_MD_CTX_free(context_); }

void IdHasher::Hash(char type, uint8_t level, const void* data, size_t size, unsigned char* digest) {
  // Key and type together fill the first of SHA-256's 64-byte blocks.
  char type_block[kTypeSize] = {type, static_cast<char>(level)};
  STILL_CHECK(EVP_DigestInit_ex2(context_, Sha256(), nullptr) == 1);
  STILL_CHECK(EVP_DigestUpdate(context_, hash_key_.data(), hash_key_.size()) == 1);
  STILL_CHECK(EVP_DigestUpdate(context_, type_block, sizeof(type_block)) == 1);
  STILL_CHECK(EVP_DigestUpdate(context_, data, size) == 1);
  STILL_CHECK(EVP_DigestFinal_ex(context_, digest, nullptr) == 1);
}

BlockId IdHasher::Block(const char* data) {
  Sha256Digest digest;
  Hash('\0', 0, data, kBlockSize, digest.data());
  return BlockIdOf(digest);
}

void IdHasher::Blocks(const char* data, absl::Span<BlockId> ids) {
  char prefix[kKeySize + kTypeSize] = {};  // The type of a block is zero.
  hash_key_.copy(prefix, kKeySize);
  std::optional<size_t> single;  // Waits for another block to be hashed with.
  for (size_t i = 0; i < ids.size(); ++i) {
    const char* block = data + i * kBlockSize;
    if (IsZero(block, kBlockSize)) {
      ids[i] = {};
    } else if (!CanHashPairs()) {
      ids[i] = Block(block);
    } else if (!single) {
      single = i;
    } else {
      const auto digests = HashPair(prefix, data + *single * kBlockSize, block, kBlockSize);
      ids[*single] = BlockIdOf(digests[0]);
      ids[i] = BlockIdOf(digests[1]);
      single.reset();
    }
  }
  if (single) ids[*single] = Block(data + *single * kBlockSize);
  OPENSSL_cleanse(prefix, sizeof(prefix));
}

NodeId IdHasher::Leaf(absl::Span<const BlockId> blocks) {
  NodeId id;
  if (std::all_of(blocks.begin(), blocks.end(), [](const BlockId& block) { return block.is_zero(); })) return id;
  Hash('L', 0, blocks.data(), blocks.size() * sizeof(BlockId), id.bytes.data());
  return id;
}

NodeId IdHasher::Inner(uint8_t level, absl::Span<const NodeId> children) {
  NodeId id;
  if (std::all_of(children.begin(), children.end(), [](const NodeId& child) { return child.is_zero(); })) return id;
  Hash('I', level, children.data(), children.size() * sizeof(NodeId), id.bytes.data());
  return id;
}

}  // namespace still::store
