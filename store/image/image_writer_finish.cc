// The second half of ImageWriterImpl: from leaves to a tree.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "base/check.h"
#include "store/image/image_writer_impl.h"

namespace still::store {
namespace {

// A leaf names packs by name, so that it means the same to everybody.
Leaf NamePacks(const PlacedBlocks& places, const PackSet& packs) {
  Leaf leaf;
  absl::flat_hash_map<PackNumber, uint32_t> indexes;
  for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
    if (places[i].is_zero()) continue;
    auto [at, is_new] = indexes.try_emplace(places[i].pack, static_cast<uint32_t>(leaf.packs.size()));
    if (is_new) leaf.packs.push_back(packs.NameOf(places[i].pack));
    leaf.blocks[i] = {.pack = at->second, .block = places[i].block};
  }
  return leaf;
}

}  // namespace

absl::Status ImageWriterImpl::Finish() {
  STILL_CHECK(!finished_);
  WaitForBatches();
  finished_ = true;
  if (is_stream_) {
    size_ = stream_end_;
    leaves_ = TreeShape(size_).leaves;
    kept_leaves_.resize(leaves_);
  }
  {
    absl::MutexLock lock(&mutex_);
    if (!status_.ok()) return status_;
  }
  std::shared_ptr<Scratch> scratch = context_.pool.Borrow();
  auto root = BuildTree(*scratch);
  if (!root.ok()) {
    absl::MutexLock lock(&mutex_);
    status_ = root.status();
    return status_;
  }
  return context_.on_finished(*root, stats());
}

bool ImageWriterImpl::NodeIsKept(uint64_t first_leaf) const {
  if (parent_ == nullptr || first_leaf % kFanout != 0 || first_leaf + kFanout > leaves_ ||
      first_leaf + kFanout > parent_->shape().leaves) {
    return false;
  }
  const auto begin = kept_leaves_.begin() + static_cast<ptrdiff_t>(first_leaf);
  return std::all_of(begin, begin + kFanout, [](bool kept) { return kept; });
}

absl::StatusOr<NodeId> ImageWriterImpl::BuildTree(Scratch& scratch) {
  auto store = [this](const NodeId& id, const std::string& encoded) {
    return context_.tree.Add(id, encoded, context_.clock.Now());
  };
  TreeBuilder builder(size_, parent_.get(), store);
  for (uint64_t leaf = 0; leaf < leaves_;) {
    if (NodeIsKept(leaf)) {
      STILL_ASSIGN_OR_RETURN(NodeId id, parent_->NodeAt(1, leaf / kFanout, scratch));
      STILL_RETURN_IF_ERROR(builder.AddFullNode(id, scratch));
      leaf += kFanout;
      continue;
    }
    NodeId id;
    if (kept_leaves_[leaf]) {
      STILL_ASSIGN_OR_RETURN(id, parent_->LeafAt(leaf, scratch));
    } else if (stage_.Contains(leaf)) {
      STILL_ASSIGN_OR_RETURN(StagedLeaf * staged, stage_.Get(leaf));
      STILL_ASSIGN_OR_RETURN(id, FinishLeaf(leaf, *staged, scratch));
      stage_.Drop(leaf);
    }
    STILL_RETURN_IF_ERROR(builder.AddLeaf(id, scratch));
    ++leaf;
  }
  return builder.Finish(scratch);
}

absl::Status ImageWriterImpl::TakeFromParent(uint64_t leaf, StagedLeaf& staged, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(NodeId parents_id, parent_->LeafAt(leaf, scratch));
  STILL_ASSIGN_OR_RETURN(PlacedBlocks parents, parent_->ReadLeaf(parents_id, scratch));
  for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
    if (staged.places[i].pack != kParentPack) continue;
    staged.places[i] = parents[i];
    if (parents[i].is_zero()) continue;
    STILL_ASSIGN_OR_RETURN(staged.ids[i], context_.blocks.IdAt(parents[i], scratch));
  }
  return absl::OkStatus();
}

absl::StatusOr<NodeId> ImageWriterImpl::FinishLeaf(uint64_t leaf, StagedLeaf& staged, Scratch& scratch) {
  const bool keeps_some = std::any_of(staged.places.begin(), staged.places.end(),
                                      [](const BlockPlace& place) { return place.pack == kParentPack; });
  if (keeps_some) STILL_RETURN_IF_ERROR(TakeFromParent(leaf, staged, scratch));
  const NodeId id = scratch.hasher.Leaf(staged.ids);
  if (id.is_zero()) return id;
  if (parent_ != nullptr) {
    STILL_ASSIGN_OR_RETURN(NodeId parents, parent_->LeafAt(leaf, scratch));
    // The parent's stored leaf says the same only while it names the same places: where its blocks were lost, they were
    // stored anew, and this leaf then heals the parent too.
    if (id == parents && *ParentLeaf(leaf, scratch) == staged.places) return id;
  }
  STILL_RETURN_IF_ERROR(
      context_.tree.Add(id, EncodeLeaf(NamePacks(staged.places, context_.packs)), context_.clock.Now()));
  return id;
}

}  // namespace still::store
