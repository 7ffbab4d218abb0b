#include "store/image/tree_builder.h"

#include <utility>

#include "base/check.h"

namespace still::store {

TreeBuilder::TreeBuilder(uint64_t image_size, TreeReader* parent, StoreNode store)
    : shape_(image_size),
      parent_(parent),
      store_(std::move(store)),
      open_(shape_.height + size_t{1}),
      made_(shape_.height + size_t{1}) {}

absl::Status TreeBuilder::Add(uint8_t level, const NodeId& id, Scratch& scratch) {
  STILL_CHECK(level <= shape_.height);
  open_[level].push_back(id);
  ++made_[level];
  if (level < shape_.height && open_[level].size() == kFanout) return EndNode(level, scratch);
  return absl::OkStatus();
}

absl::Status TreeBuilder::EndNode(uint8_t level, Scratch& scratch) {
  const auto above = static_cast<uint8_t>(level + 1);
  const std::vector<NodeId> children = std::exchange(open_[level], {});
  const NodeId id = scratch.hasher.Inner(above, children);
  bool is_stored = id.is_zero();
  if (!is_stored && parent_ != nullptr) {
    STILL_ASSIGN_OR_RETURN(NodeId parents, parent_->NodeAt(above, made_[above], scratch));
    is_stored = id == parents;
  }
  if (!is_stored) STILL_RETURN_IF_ERROR(store_(id, EncodeInner(above, children)));
  return Add(above, id, scratch);
}

absl::StatusOr<NodeId> TreeBuilder::Finish(Scratch& scratch) {
  if (shape_.leaves == 0) return NodeId{};
  for (uint8_t level = 0; level < shape_.height; ++level) {
    if (!open_[level].empty()) STILL_RETURN_IF_ERROR(EndNode(level, scratch));
  }
  STILL_CHECK(open_[shape_.height].size() == 1 && made_[shape_.height] == 1);
  return open_[shape_.height][0];
}

}  // namespace still::store
