// Damage: what verification found to be broken, and which bytes of which images that costs.
#pragma once

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "store/gc/tree_walk.h"
#include "store/maintenance.h"

namespace still::store {

// Thread-safe.
class Damage {
 public:
  // One sentence for the report; the same one is kept once.
  void AddProblem(const std::string& problem) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddProblem(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddNode(const NodeId& id) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddBlock(const PackName& pack, uint32_t block) ABSL_LOCKS_EXCLUDED(mutex_);
  void AddPack(const PackName& pack) ABSL_LOCKS_EXCLUDED(mutex_);
  // A manifest or note of which nothing can be saved.
  void AddObject(const std::string& object) ABSL_LOCKS_EXCLUDED(mutex_);

  // Some of it is whole, but of a newer version of this program: nothing to salvage, or to set aside, with this one.
  bool has_newer() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool empty() const ABSL_LOCKS_EXCLUDED(mutex_);
  bool HasBlock(const PackName& pack, uint32_t block) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<std::string> problems() const ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<PackName> packs() const ABSL_LOCKS_EXCLUDED(mutex_);  // With a damaged footer or block.
  std::vector<std::string> objects() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Walks every image: the ranges under broken nodes, and of broken blocks.
  std::vector<LostRange> LostRanges(RepositoryState& state, const Snapshots& snapshots) const;

 private:
  struct ImageWalk;
  void Walk(ImageWalk& walk, uint8_t level, uint64_t index, const NodeId& id) const;
  void WalkLeaf(ImageWalk& walk, uint64_t index, const NodeId& id) const;

  mutable absl::Mutex mutex_;
  std::vector<std::string> problems_ ABSL_GUARDED_BY(mutex_);
  bool has_newer_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<NodeId> nodes_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<PackName, absl::flat_hash_set<uint32_t>> blocks_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<PackName> packs_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> objects_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::store
