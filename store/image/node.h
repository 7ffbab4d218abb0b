// Tree nodes: the recipes of images (docs/format/repository.md, "Nodes"). Encoding, and parsing of hostile bytes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/block/identity.h"
#include "store/pack/pack_format.h"

namespace still::store {

inline constexpr uint32_t kBlocksPerLeaf = 256;
inline constexpr uint64_t kLeafSpan = kBlocksPerLeaf * kBlockSize;  // 1 MiB of an image.
inline constexpr uint32_t kFanout = 128;
inline constexpr uint64_t kMaxImageSize = 1ull << 50;

struct Leaf {
  std::vector<PackName> packs;
  std::array<BlockPlace, kBlocksPerLeaf> blocks;
};

struct InnerNode {
  uint8_t level = 0;  // 1: its children are leaves.
  std::vector<NodeId> children;
};

std::string EncodeLeaf(const Leaf& leaf);
std::string EncodeInner(uint8_t level, absl::Span<const NodeId> children);
// DATA_LOSS for anything that EncodeX cannot have written.
absl::StatusOr<Leaf> ParseLeaf(absl::string_view bytes);
absl::StatusOr<InnerNode> ParseInner(absl::string_view bytes);

// The nodes that lie one after the other in a frame, up to the first that cannot be one: for salvage, which has no
// footer that says where they are.
std::vector<absl::string_view> SplitNodes(absl::string_view payload);
bool IsLeaf(absl::string_view node);

// The shape of a tree follows from the image's size.
struct TreeShape {
  explicit TreeShape(uint64_t image_size);
  uint64_t leaves = 0;
  uint8_t height = 0;  // Level of the root; 0: the root is a leaf (or there is none).
  // Nodes at a level.
  uint64_t NodesAt(uint8_t level) const;
};

}  // namespace still::store
