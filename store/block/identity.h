// Block and node ids: what names content (docs/format/repository.md, "Identity").
//
// Ids are keyed hashes; equal content has an equal id, wherever it is stored. The zero id stands for content that is
// all zero and is never stored.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

typedef struct evp_md_ctx_st EVP_MD_CTX;

namespace still::store {

inline constexpr size_t kBlockSize = 4096;

template <size_t kSize>
struct ContentId {
  std::array<unsigned char, kSize> bytes{};

  static constexpr size_t size() { return kSize; }
  bool is_zero() const { return *this == ContentId{}; }
  absl::string_view view() const { return {reinterpret_cast<const char*>(bytes.data()), kSize}; }
  // Uniformly distributed, because ids are hashes.
  uint64_t prefix() const {
    uint64_t value;
    std::memcpy(&value, bytes.data(), sizeof(value));
    return value;
  }
  // CHECKs the size.
  static ContentId FromBytes(absl::string_view bytes);

  bool operator==(const ContentId&) const = default;
  auto operator<=>(const ContentId&) const = default;
  template <typename H>
  friend H AbslHashValue(H state, const ContentId& id) {
    return H::combine(std::move(state), id.prefix());
  }
};

using BlockId = ContentId<16>;
using NodeId = ContentId<32>;

// True when all `size` bytes are zero.
bool IsZero(const char* data, size_t size);

// Computes ids. Not thread-safe: one per thread. Holds the key by reference: `hash_key` (32 bytes) must outlive it.
class IdHasher {
 public:
  explicit IdHasher(absl::string_view hash_key);
  ~IdHasher();
  IdHasher(const IdHasher&) = delete;
  IdHasher& operator=(const IdHasher&) = delete;

  // Of kBlockSize bytes that are not all zero.
  BlockId Block(const char* data);
  // Of as many blocks as there are ids, one after the other; the zero id where one is all zero. Nearly twice as fast as
  // Block() for each on processors with SHA instructions.
  void Blocks(const char* data, absl::Span<BlockId> ids);
  // Of block ids or of node ids; zero if all of them are.
  NodeId Leaf(absl::Span<const BlockId> blocks);
  NodeId Inner(uint8_t level, absl::Span<const NodeId> children);

 private:
  void Hash(char type, uint8_t level, const void* data, size_t size, unsigned char* digest);

  absl::string_view hash_key_;
  EVP_MD_CTX* context_;
};

}  // namespace still::store
