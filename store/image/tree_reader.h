// Reads image trees: nodes by id, leaves by their number in an image.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/status.h"
#include "store/image/node.h"
#include "store/pack/frame_cache.h"
#include "store/pack/pack_set.h"

namespace still::store {

// Where a node is stored: the node with this number in the footer of the pack.
struct NodeAddress {
  PackName pack;
  uint32_t node = 0;
};

// Finds nodes by id: the catalog, behind a seam because trees know nothing of SQL. Thread-safe.
class NodeFinder {
 public:
  virtual ~NodeFinder() = default;
  // Places of the node, the one to use first (docs/format/repository.md, end of "Order of writing"). DATA_LOSS when
  // there is none.
  virtual absl::StatusOr<std::vector<NodeAddress>> FindNode(const NodeId& id) = 0;
};

// A leaf whose blocks are placed by PackNumber.
using PlacedBlocks = std::array<BlockPlace, kBlocksPerLeaf>;

// Nodes by id, parsed. Thread-safe.
class NodeStore {
 public:
  NodeStore(PackSet& packs, FrameCache& cache, NodeFinder& finder) : packs_(packs), cache_(cache), finder_(finder) {}

  absl::StatusOr<InnerNode> ReadInner(const NodeId& id, Scratch& scratch);
  absl::StatusOr<PlacedBlocks> ReadLeaf(const NodeId& id, Scratch& scratch);
  // The leaf as it is stored.
  absl::StatusOr<Leaf> ReadStoredLeaf(const NodeId& id, Scratch& scratch);

  PackSet& packs() const { return packs_; }
  FrameCache& cache() const { return cache_; }

 private:
  absl::StatusOr<std::string> ReadNode(const NodeId& id, Scratch& scratch);
  absl::StatusOr<std::string> ReadNodeAt(const NodeId& id, const NodeAddress& place, Scratch& scratch);

  PackSet& packs_;
  FrameCache& cache_;
  NodeFinder& finder_;
};

// One image's tree. Remembers the way to the leaf it was last asked for, so that leaves in order cost one inner node
// for every 128. Not thread-safe.
class TreeReader {
 public:
  TreeReader(NodeStore& nodes, const NodeId& root, uint64_t image_size);

  const TreeShape& shape() const { return shape_; }
  uint64_t image_size() const { return image_size_; }
  // The id of node `index` at `level`; zero for one that is all zero or beyond the image's end.
  absl::StatusOr<NodeId> NodeAt(uint8_t level, uint64_t index, Scratch& scratch);
  absl::StatusOr<NodeId> LeafAt(uint64_t index, Scratch& scratch) { return NodeAt(0, index, scratch); }
  // All zero for the zero id.
  absl::StatusOr<PlacedBlocks> ReadLeaf(const NodeId& id, Scratch& scratch);

 private:
  struct Visited {
    uint64_t index = ~uint64_t{0};
    InnerNode node;
  };

  NodeStore& nodes_;
  const NodeId root_;
  const uint64_t image_size_;
  const TreeShape shape_;
  std::vector<Visited> visited_;  // By level.
};

}  // namespace still::store
