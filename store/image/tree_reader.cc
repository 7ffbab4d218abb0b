#include "store/image/tree_reader.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace still::store {

absl::StatusOr<std::string> NodeStore::ReadNode(const NodeId& id, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::vector<NodeAddress> places, finder_.FindNode(id));
  absl::Status status;
  for (const NodeAddress& place : places) {
    auto node = ReadNodeAt(id, place, scratch);
    if (node.ok()) return node;
    if (status.ok()) status = node.status();
  }
  return status;
}

absl::StatusOr<std::string> NodeStore::ReadNodeAt(const NodeId& id, const NodeAddress& place, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const OpenPack> pack, packs_.Open(packs_.Add(place.pack), scratch));
  if (place.node >= pack->footer.nodes.size() || pack->footer.nodes[place.node].id != id) {
    return absl::DataLossError(
        absl::StrCat(pack->object, ": tree node ", place.node, " is not the one that was looked for"));
  }
  const PackNode& node = pack->footer.nodes[place.node];
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const FrameBytes> frame, cache_.Get(*pack, node.frame, scratch));
  if (uint64_t{node.offset} + node.size > frame->size) {
    return absl::DataLossError(absl::StrCat(pack->object, ": tree node ", place.node, " lies outside of its frame"));
  }
  return std::string(frame->view().substr(node.offset, node.size));
}

absl::StatusOr<InnerNode> NodeStore::ReadInner(const NodeId& id, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::string bytes, ReadNode(id, scratch));
  return ParseInner(bytes);
}

absl::StatusOr<Leaf> NodeStore::ReadStoredLeaf(const NodeId& id, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::string bytes, ReadNode(id, scratch));
  return ParseLeaf(bytes);
}

absl::StatusOr<PlacedBlocks> NodeStore::ReadLeaf(const NodeId& id, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(Leaf leaf, ReadStoredLeaf(id, scratch));
  std::vector<PackNumber> numbers;
  numbers.reserve(leaf.packs.size());
  for (const PackName& name : leaf.packs) numbers.push_back(packs_.Add(name));
  for (BlockPlace& place : leaf.blocks) {
    if (!place.is_zero()) place.pack = numbers[place.pack];
  }
  return leaf.blocks;
}

TreeReader::TreeReader(NodeStore& nodes, const NodeId& root, uint64_t image_size)
    : nodes_(nodes), root_(root), image_size_(image_size), shape_(image_size), visited_(shape_.height + size_t{1}) {}

absl::StatusOr<NodeId> TreeReader::NodeAt(uint8_t level, uint64_t index, Scratch& scratch) {
  if (level > shape_.height || index >= shape_.NodesAt(level)) return NodeId{};
  if (level == shape_.height) return root_;
  const uint64_t parent_index = index / kFanout;
  const auto parent_level = static_cast<uint8_t>(level + 1);
  Visited& parent = visited_[parent_level];
  if (parent.index != parent_index) {
    STILL_ASSIGN_OR_RETURN(NodeId id, NodeAt(parent_level, parent_index, scratch));
    if (id.is_zero()) return NodeId{};
    STILL_ASSIGN_OR_RETURN(InnerNode node, nodes_.ReadInner(id, scratch));
    if (node.level != parent_level) return absl::DataLossError("tree node: not of the level at which it is used");
    parent = {.index = parent_index, .node = std::move(node)};
  }
  const uint64_t child = index % kFanout;
  return child < parent.node.children.size() ? parent.node.children[child] : NodeId{};
}

absl::StatusOr<PlacedBlocks> TreeReader::ReadLeaf(const NodeId& id, Scratch& scratch) {
  if (id.is_zero()) return PlacedBlocks{};
  return nodes_.ReadLeaf(id, scratch);
}

}  // namespace still::store
