#include "store/verify/damage.h"

#include <algorithm>

namespace still::store {

namespace manifest = ::stillpoint::manifest::v1;

void Damage::AddProblem(const std::string& problem) {
  absl::MutexLock lock(&mutex_);
  if (std::find(problems_.begin(), problems_.end(), problem) == problems_.end()) problems_.push_back(problem);
}

void Damage::AddProblem(const absl::Status& status) {
  AddProblem(std::string(status.message()));
  absl::MutexLock lock(&mutex_);
  has_newer_ |= absl::IsFailedPrecondition(status);
}

bool Damage::has_newer() const {
  absl::MutexLock lock(&mutex_);
  return has_newer_;
}

void Damage::AddNode(const NodeId& id) {
  absl::MutexLock lock(&mutex_);
  nodes_.insert(id);
}

void Damage::AddBlock(const PackName& pack, uint32_t block) {
  absl::MutexLock lock(&mutex_);
  blocks_[pack].insert(block);
}

void Damage::AddPack(const PackName& pack) {
  absl::MutexLock lock(&mutex_);
  packs_.insert(pack);
}

void Damage::AddObject(const std::string& object) {
  absl::MutexLock lock(&mutex_);
  objects_.push_back(object);
}

std::vector<std::string> Damage::objects() const {
  absl::MutexLock lock(&mutex_);
  return objects_;
}

bool Damage::empty() const {
  absl::MutexLock lock(&mutex_);
  return problems_.empty() && nodes_.empty() && blocks_.empty() && packs_.empty();
}

bool Damage::HasBlock(const PackName& pack, uint32_t block) const {
  absl::MutexLock lock(&mutex_);
  if (packs_.contains(pack)) return true;
  auto at = blocks_.find(pack);
  return at != blocks_.end() && at->second.contains(block);
}

std::vector<std::string> Damage::problems() const {
  absl::MutexLock lock(&mutex_);
  return problems_;
}

std::vector<PackName> Damage::packs() const {
  absl::MutexLock lock(&mutex_);
  std::vector<PackName> packs(packs_.begin(), packs_.end());
  for (const auto& [pack, blocks] : blocks_) {
    if (!packs_.contains(pack)) packs.push_back(pack);
  }
  std::sort(packs.begin(), packs.end());
  return packs;
}

struct Damage::ImageWalk {
  RepositoryState& state;
  Scratch& scratch;
  const manifest::Snapshot& snapshot;
  const manifest::Image& image;
  std::vector<LostRange>& lost;

  void Lose(uint64_t offset, uint64_t length) const {
    if (offset >= image.size()) return;
    length = std::min(length, image.size() - offset);
    if (!lost.empty() && lost.back().snapshot_id == snapshot.id() && lost.back().image == image.name() &&
        lost.back().range.offset + lost.back().range.length == offset) {
      lost.back().range.length += length;
      return;
    }
    lost.push_back({.snapshot_id = snapshot.id(),
                    .snapshot_name = snapshot.name(),
                    .image = image.name(),
                    .range = {.offset = offset, .length = length}});
  }
};

void Damage::WalkLeaf(ImageWalk& walk, uint64_t index, const NodeId& id) const {
  auto leaf = walk.state.nodes.ReadStoredLeaf(id, walk.scratch);
  if (!leaf.ok()) return walk.Lose(index * kLeafSpan, kLeafSpan);
  for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
    const BlockPlace& place = leaf->blocks[i];
    if (place.is_zero() || !HasBlock(leaf->packs[place.pack], place.block)) continue;
    walk.Lose(index * kLeafSpan + i * kBlockSize, kBlockSize);
  }
}

void Damage::Walk(ImageWalk& walk, uint8_t level, uint64_t index, const NodeId& id) const {
  if (id.is_zero()) return;
  bool is_broken;
  {
    absl::MutexLock lock(&mutex_);
    is_broken = nodes_.contains(id);
  }
  uint64_t span = kLeafSpan;
  for (uint8_t i = 0; i < level; ++i) span *= kFanout;
  if (is_broken) return walk.Lose(index * span, span);
  if (level == 0) return WalkLeaf(walk, index, id);
  auto node = walk.state.nodes.ReadInner(id, walk.scratch);
  if (!node.ok() || node->level != level) return walk.Lose(index * span, span);
  for (size_t i = 0; i < node->children.size(); ++i) {
    Walk(walk, static_cast<uint8_t>(level - 1), index * kFanout + i, node->children[i]);
  }
}

std::vector<LostRange> Damage::LostRanges(RepositoryState& state, const Snapshots& snapshots) const {
  std::vector<LostRange> lost;
  std::shared_ptr<Scratch> scratch = state.pool.Borrow();
  for (const manifest::Snapshot& snapshot : snapshots) {
    for (const manifest::Image& image : snapshot.images()) {
      ImageWalk walk = {.state = state, .scratch = *scratch, .snapshot = snapshot, .image = image, .lost = lost};
      Walk(walk, TreeShape(image.size()).height, 0, NodeId::FromBytes(image.root()));
    }
  }
  return lost;
}

}  // namespace still::store
