// The footer and trailer of a pack (docs/format/repository.md, "Pack"): encoding, and parsing of hostile bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/block/identity.h"

namespace still::store {

enum class PackKind : uint8_t { kData = 1, kTree = 2 };

inline constexpr size_t kBlocksPerGroup = 64;
inline constexpr size_t kGroupSize = kBlocksPerGroup * kBlockSize;
inline constexpr size_t kPackTrailerSize = 32;
inline constexpr uint64_t kMaxPackSize = 1ull << 30;
inline constexpr uint32_t kMaxPackBlocks = 65536;

// A pack's name is 16 random bytes; its object is "packs/" and their hex digits.
using PackName = ContentId<16>;
std::string PackObject(const PackName& name);
// INVALID_ARGUMENT unless it is the name of a pack's object.
absl::StatusOr<PackName> PackNameOf(absl::string_view object);

// Where a block is stored: block number `block` of pack number `pack`. What a pack number means is the owner's matter:
// in a Leaf it is an index into `packs`, elsewhere it is one of PackSet's.
struct BlockPlace {
  static constexpr uint32_t kZeroPack = 0xffffffff;
  uint32_t pack = kZeroPack;
  uint32_t block = 0;

  bool is_zero() const { return pack == kZeroPack; }
  bool operator==(const BlockPlace&) const = default;
};

struct PackFrame {
  uint32_t offset = 0;
  uint32_t size = 0;  // With header.
};

struct PackNode {
  NodeId id;
  uint32_t frame = 0;
  uint32_t offset = 0;  // In the frame's payload.
  uint32_t size = 0;
};

struct PackFooter {
  PackKind kind = PackKind::kData;
  int64_t created_unix_ns = 0;
  std::vector<PackFrame> frames;
  std::vector<BlockId> blocks;
  std::vector<PackNode> nodes;

  // Memory it takes, roughly.
  size_t footprint() const {
    return sizeof(*this) + frames.size() * sizeof(PackFrame) + blocks.size() * sizeof(BlockId) +
           nodes.size() * sizeof(PackNode);
  }
  // Blocks in a frame.
  uint32_t BlocksIn(uint32_t frame) const;
};

std::string EncodeFooter(const PackFooter& footer);
// `frames_end`: where the footer's frame begins. DATA_LOSS if anything is inconsistent.
absl::StatusOr<PackFooter> ParseFooter(absl::string_view payload, uint64_t frames_end);

struct PackTrailer {
  uint64_t footer_offset = 0;
  uint64_t footer_size = 0;
};

std::string EncodeTrailer(const PackTrailer& trailer);
absl::StatusOr<PackTrailer> ParseTrailer(absl::string_view bytes, uint64_t pack_size);

}  // namespace still::store
