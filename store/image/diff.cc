#include "store/image/diff.h"

#include <algorithm>
#include <array>

namespace still::store {
namespace {

class TreeDiff {
 public:
  TreeDiff(PackSet& packs, TreeReader& a, TreeReader& b, Scratch& scratch)
      : packs_(packs), a_(a), b_(b), scratch_(scratch), size_(std::max(a.image_size(), b.image_size())) {}

  absl::StatusOr<std::vector<ImageRange>> Run() {
    // From the level that both trees have down; where only the larger one has more levels, its nodes at the level of
    // the smaller one's root are compared one by one.
    const uint8_t level = std::min(a_.shape().height, b_.shape().height);
    const uint64_t nodes = std::max(a_.shape().NodesAt(level), b_.shape().NodesAt(level));
    for (uint64_t index = 0; index < nodes; ++index) STILL_RETURN_IF_ERROR(Compare(level, index));
    return std::move(ranges_);
  }

 private:
  using Ids = std::array<BlockId, kBlocksPerLeaf>;

  absl::Status Compare(uint8_t level, uint64_t index) {
    STILL_ASSIGN_OR_RETURN(NodeId id_a, a_.NodeAt(level, index, scratch_));
    STILL_ASSIGN_OR_RETURN(NodeId id_b, b_.NodeAt(level, index, scratch_));
    if (id_a == id_b) return absl::OkStatus();
    if (level == 0) return CompareLeaves(index, id_a, id_b);
    for (uint64_t child = index * kFanout; child < (index + 1) * kFanout; ++child) {
      STILL_RETURN_IF_ERROR(Compare(static_cast<uint8_t>(level - 1), child));
    }
    return absl::OkStatus();
  }

  absl::Status CompareLeaves(uint64_t leaf, const NodeId& id_a, const NodeId& id_b) {
    STILL_ASSIGN_OR_RETURN(Ids ids_a, IdsOf(a_, id_a));
    STILL_ASSIGN_OR_RETURN(Ids ids_b, IdsOf(b_, id_b));
    for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
      if (ids_a[i] != ids_b[i]) Report(leaf * kLeafSpan + i * kBlockSize);
    }
    return absl::OkStatus();
  }

  // Places do not tell whether contents are equal, ids do.
  absl::StatusOr<Ids> IdsOf(TreeReader& tree, const NodeId& leaf) {
    STILL_ASSIGN_OR_RETURN(PlacedBlocks places, tree.ReadLeaf(leaf, scratch_));
    Ids ids;
    std::shared_ptr<const OpenPack> pack;
    for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
      if (places[i].is_zero()) continue;
      if (pack == nullptr || pack->number != places[i].pack) {
        STILL_ASSIGN_OR_RETURN(pack, packs_.Open(places[i].pack, scratch_));
      }
      if (places[i].block >= pack->footer.blocks.size()) return absl::DataLossError("tree node: names a missing block");
      ids[i] = pack->footer.blocks[places[i].block];
    }
    return ids;
  }

  void Report(uint64_t offset) {
    if (offset >= size_) return;
    const uint64_t length = std::min<uint64_t>(kBlockSize, size_ - offset);
    if (!ranges_.empty() && ranges_.back().offset + ranges_.back().length == offset) {
      ranges_.back().length += length;
    } else {
      ranges_.push_back({.offset = offset, .length = length});
    }
  }

  PackSet& packs_;
  TreeReader& a_;
  TreeReader& b_;
  Scratch& scratch_;
  const uint64_t size_;
  std::vector<ImageRange> ranges_;
};

}  // namespace

absl::StatusOr<std::vector<ImageRange>> DiffTrees(PackSet& packs, TreeReader& a, TreeReader& b, Scratch& scratch) {
  return TreeDiff(packs, a, b, scratch).Run();
}

}  // namespace still::store
