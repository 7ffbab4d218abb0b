#include "store/image/node.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "store/block/bytes.h"

namespace still::store {
namespace {

constexpr uint8_t kLeafTag = 1;
constexpr uint8_t kInnerTag = 2;
constexpr size_t kBitmapSize = kFanout / 8;

enum RunType : uint64_t { kZeroRun = 0, kNextRun = 1, kSamePackRun = 2, kPlacedRun = 3 };

absl::Status Damaged(absl::string_view what) { return absl::DataLossError(absl::StrCat("tree node: ", what)); }

// How many blocks from `begin` on are stored one after the other (or are all zero).
uint32_t RunLength(const Leaf& leaf, uint32_t begin) {
  const BlockPlace first = leaf.blocks[begin];
  uint32_t length = 1;
  while (begin + length < kBlocksPerLeaf) {
    const BlockPlace& next = leaf.blocks[begin + length];
    if (next.pack != first.pack || (!first.is_zero() && next.block != first.block + length)) break;
    ++length;
  }
  return length;
}

absl::StatusOr<Leaf> ReadLeaf(ByteReader& reader) {
  if (reader.Int<uint8_t>() != kLeafTag) return Damaged("not a leaf");
  Leaf leaf;
  const uint64_t packs = reader.Varint();
  if (packs > kBlocksPerLeaf) return Damaged("too many packs");
  for (uint64_t i = 0; i < packs; ++i) {
    absl::string_view name = reader.Bytes(PackName::size());
    if (!reader.ok()) return Damaged("ends early");
    leaf.packs.push_back(PackName::FromBytes(name));
  }
  BlockPlace expected = {.pack = 0, .block = 0};
  for (uint32_t begin = 0; begin < kBlocksPerLeaf;) {
    const uint64_t head = reader.Varint();
    const uint64_t length = head / 4 + 1;
    if (!reader.ok() || length > kBlocksPerLeaf - begin) return Damaged("impossible run");
    if (head % 4 == kZeroRun) {
      begin += static_cast<uint32_t>(length);
      continue;
    }
    uint64_t pack = expected.pack;
    uint64_t block = expected.block;
    if (head % 4 == kSamePackRun) block += static_cast<uint64_t>(reader.SignedVarint());
    if (head % 4 == kPlacedRun) {
      pack = reader.Varint();
      block = reader.Varint();
    }
    if (!reader.ok() || pack >= packs || block >= kMaxPackBlocks || block + length > kMaxPackBlocks) {
      return Damaged("impossible place");
    }
    for (uint64_t i = 0; i < length; ++i) {
      leaf.blocks[begin++] = {.pack = static_cast<uint32_t>(pack), .block = static_cast<uint32_t>(block + i)};
    }
    expected = {.pack = static_cast<uint32_t>(pack), .block = static_cast<uint32_t>(block + length)};
  }
  return leaf;
}

absl::StatusOr<InnerNode> ReadInner(ByteReader& reader) {
  if (reader.Int<uint8_t>() != kInnerTag) return Damaged("not an inner node");
  InnerNode node;
  node.level = reader.Int<uint8_t>();
  const auto count = reader.Int<uint8_t>();
  absl::string_view bitmap = reader.Bytes(kBitmapSize);
  if (!reader.ok() || node.level == 0 || count == 0 || count > kFanout) return Damaged("impossible inner node");
  node.children.resize(count);
  for (size_t i = 0; i < kFanout; ++i) {
    if ((bitmap[i / 8] >> (i % 8) & 1) == 0) continue;
    absl::string_view id = reader.Bytes(NodeId::size());
    if (!reader.ok() || i >= count) return Damaged("children that are not there");
    node.children[i] = NodeId::FromBytes(id);
    if (node.children[i].is_zero()) return Damaged("a zero child that is marked as stored");
  }
  return node;
}

}  // namespace

std::string EncodeLeaf(const Leaf& leaf) {
  STILL_CHECK(leaf.packs.size() <= kBlocksPerLeaf);
  std::string out;
  out.push_back(kLeafTag);
  AppendVarint(out, leaf.packs.size());
  for (const PackName& pack : leaf.packs) out.append(pack.view().data(), pack.size());
  BlockPlace expected = {.pack = 0, .block = 0};
  for (uint32_t begin = 0; begin < kBlocksPerLeaf;) {
    const BlockPlace first = leaf.blocks[begin];
    const uint32_t length = RunLength(leaf, begin);
    const uint64_t head = uint64_t{length - 1} * 4;
    if (first.is_zero()) {
      AppendVarint(out, head + kZeroRun);
    } else {
      STILL_CHECK(first.pack < leaf.packs.size());
      if (first == expected) {
        AppendVarint(out, head + kNextRun);
      } else if (first.pack == expected.pack) {
        AppendVarint(out, head + kSamePackRun);
        AppendSignedVarint(out, int64_t{first.block} - int64_t{expected.block});
      } else {
        AppendVarint(out, head + kPlacedRun);
        AppendVarint(out, first.pack);
        AppendVarint(out, first.block);
      }
      expected = {.pack = first.pack, .block = first.block + length};
    }
    begin += length;
  }
  return out;
}

std::string EncodeInner(uint8_t level, absl::Span<const NodeId> children) {
  STILL_CHECK(!children.empty() && children.size() <= kFanout);
  std::string out;
  out.push_back(kInnerTag);
  out.push_back(static_cast<char>(level));
  out.push_back(static_cast<char>(children.size()));
  std::string bitmap(kBitmapSize, '\0');
  for (size_t i = 0; i < children.size(); ++i) {
    if (!children[i].is_zero()) bitmap[i / 8] = static_cast<char>(bitmap[i / 8] | (1 << (i % 8)));
  }
  out += bitmap;
  for (const NodeId& child : children) {
    if (!child.is_zero()) out.append(child.view().data(), child.size());
  }
  return out;
}

absl::StatusOr<Leaf> ParseLeaf(absl::string_view bytes) {
  ByteReader reader(bytes);
  STILL_ASSIGN_OR_RETURN(Leaf leaf, ReadLeaf(reader));
  if (!reader.AtEnd()) return Damaged("longer than its runs");
  return leaf;
}

absl::StatusOr<InnerNode> ParseInner(absl::string_view bytes) {
  ByteReader reader(bytes);
  STILL_ASSIGN_OR_RETURN(InnerNode node, ReadInner(reader));
  if (!reader.AtEnd()) return Damaged("longer than its children");
  return node;
}

std::vector<absl::string_view> SplitNodes(absl::string_view payload) {
  std::vector<absl::string_view> nodes;
  while (!payload.empty()) {
    ByteReader reader(payload);
    const absl::Status status = IsLeaf(payload) ? ReadLeaf(reader).status() : ReadInner(reader).status();
    if (!status.ok()) break;
    nodes.push_back(payload.substr(0, payload.size() - reader.remaining()));
    payload.remove_prefix(nodes.back().size());
  }
  return nodes;
}

bool IsLeaf(absl::string_view node) { return !node.empty() && node[0] == kLeafTag; }

TreeShape::TreeShape(uint64_t image_size) : leaves((image_size + kLeafSpan - 1) / kLeafSpan) {
  for (uint64_t nodes = leaves; nodes > 1; nodes = (nodes + kFanout - 1) / kFanout) ++height;
}

uint64_t TreeShape::NodesAt(uint8_t level) const {
  uint64_t nodes = leaves;
  for (uint8_t i = 0; i < level; ++i) nodes = (nodes + kFanout - 1) / kFanout;
  return nodes;
}

}  // namespace still::store
