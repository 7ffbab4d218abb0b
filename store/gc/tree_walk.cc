#include "store/gc/tree_walk.h"

#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

class NodeCollector {
 public:
  explicit NodeCollector(RepositoryState& state) : state_(state), scratch_(state.pool.Borrow()) {}

  void Visit(uint8_t level, const NodeId& id) {
    if (id.is_zero() || !seen_.insert(id).second) return;
    if (level == 0) {
      nodes_.leaves.push_back(id);
      return;
    }
    auto node = state_.nodes.ReadInner(id, *scratch_);
    if (node.ok() && (node->level != level || scratch_->hasher.Inner(level, node->children) != id)) {
      node = absl::DataLossError(
          absl::StrCat("tree node ", absl::BytesToHexString(id.view().substr(0, 8)), "... is not what its id says"));
    }
    if (!node.ok()) {
      nodes_.broken[id] = node.status();
      return;
    }
    nodes_.inner.push_back(id);
    for (const NodeId& child : node->children) Visit(static_cast<uint8_t>(level - 1), child);
  }

  TreeNodes Take() { return std::move(nodes_); }

 private:
  RepositoryState& state_;
  std::shared_ptr<Scratch> scratch_;
  absl::flat_hash_set<NodeId> seen_;
  TreeNodes nodes_;
};

}  // namespace

absl::StatusOr<Snapshots> ReadAllManifests(RepositoryState& state,
                                           std::vector<std::pair<std::string, absl::Status>>* broken) {
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects, state.objects->List("snapshots/"));
  Snapshots snapshots;
  for (const ObjectInfo& object : objects) {
    absl::string_view id = object.name;
    absl::ConsumePrefix(&id, "snapshots/");
    auto snapshot = ReadManifest(state, id);
    if (snapshot.ok()) {
      snapshots.push_back(*std::move(snapshot));
    } else if (absl::IsNotFound(snapshot.status())) {
      continue;  // Forgotten since it was listed.
    } else if (broken == nullptr) {
      return snapshot.status();
    } else {
      broken->emplace_back(object.name, snapshot.status());
    }
  }
  return snapshots;
}

TreeNodes CollectNodes(RepositoryState& state, const Snapshots& snapshots) {
  NodeCollector collector(state);
  for (const manifest::Snapshot& snapshot : snapshots) {
    for (const manifest::Image& image : snapshot.images()) {
      collector.Visit(TreeShape(image.size()).height, NodeId::FromBytes(image.root()));
    }
  }
  return collector.Take();
}

void LiveMap::Mark(const PackName& pack, uint32_t item) {
  Marks& marks = packs_[pack];
  if (marks.items.size() <= item) marks.items.resize(item + size_t{1});
  if (!marks.items[item]) ++marks.count;
  marks.items[item] = true;
}

uint64_t LiveMap::Count(const PackName& pack) const {
  auto at = packs_.find(pack);
  return at == packs_.end() ? 0 : at->second.count;
}

bool LiveMap::IsLive(const PackName& pack, uint32_t item) const {
  auto at = packs_.find(pack);
  return at != packs_.end() && item < at->second.items.size() && at->second.items[item];
}

absl::StatusOr<LiveData> FindLiveData(RepositoryState& state, const Snapshots& snapshots, bool skip_damage) {
  LiveData live = {.tree = CollectNodes(state, snapshots)};
  if (!live.tree.broken.empty() && !skip_damage) return live.tree.broken.begin()->second;
  for (const std::vector<NodeId>* ids : {&live.tree.inner, &live.tree.leaves}) {
    for (const NodeId& id : *ids) {
      auto places = state.FindNode(id);
      if (!places.ok() && !skip_damage) return places.status();
      if (places.ok()) live.nodes.Mark(places->front().pack, places->front().node);
    }
  }
  absl::Mutex mutex;
  const std::vector<NodeId>& leaves = live.tree.leaves;
  STILL_RETURN_IF_ERROR(state.pool.ParallelFor(leaves.size(), [&](uint64_t i, Scratch& scratch) -> absl::Status {
    auto leaf = state.nodes.ReadStoredLeaf(leaves[i], scratch);
    if (!leaf.ok()) return skip_damage ? absl::OkStatus() : leaf.status();
    absl::MutexLock lock(&mutex);
    for (const BlockPlace& place : leaf->blocks) {
      if (!place.is_zero()) live.blocks.Mark(leaf->packs[place.pack], place.block);
    }
    return absl::OkStatus();
  }));
  return live;
}

}  // namespace still::store
