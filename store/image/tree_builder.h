// TreeBuilder: makes an image's tree from its leaves, given in order. Takes inner nodes over from the parent's tree
// where they are equal, and passes the others on to be stored.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"
#include "store/image/node.h"
#include "store/image/tree_reader.h"

namespace still::store {

class TreeBuilder {
 public:
  using StoreNode = std::function<absl::Status(const NodeId& id, const std::string& encoded)>;
  // `parent`: nullptr without one.
  TreeBuilder(uint64_t image_size, TreeReader* parent, StoreNode store);

  // The next leaf.
  absl::Status AddLeaf(const NodeId& id, Scratch& scratch) { return Add(0, id, scratch); }
  // The next kFanout leaves, as one node of level 1 that is stored already. Only where a node of level 1 begins.
  absl::Status AddFullNode(const NodeId& id, Scratch& scratch) { return Add(1, id, scratch); }
  // After the last leaf: the root.
  absl::StatusOr<NodeId> Finish(Scratch& scratch);

 private:
  absl::Status Add(uint8_t level, const NodeId& id, Scratch& scratch);
  absl::Status EndNode(uint8_t level, Scratch& scratch);

  const TreeShape shape_;
  TreeReader* const parent_;
  const StoreNode store_;
  std::vector<std::vector<NodeId>> open_;  // By level: the ids of that level whose parent is not yet made.
  std::vector<uint64_t> made_;             // By level: nodes made.
};

}  // namespace still::store
