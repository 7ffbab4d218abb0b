// Walks the trees of all snapshots, each node once: the base of prune and verify.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "store/repository_state.h"

namespace still::store {

using Snapshots = std::vector<stillpoint::manifest::v1::Snapshot>;

// Every manifest there is now, from the objects themselves. A damaged one goes to `broken` (name, error); without
// `broken` it is an error.
absl::StatusOr<Snapshots> ReadAllManifests(RepositoryState& state,
                                           std::vector<std::pair<std::string, absl::Status>>* broken);

struct TreeNodes {
  std::vector<NodeId> leaves;  // Each once, in the order of the images.
  std::vector<NodeId> inner;
  // Inner nodes that cannot be read, or are not what their id says; what is below them is not known.
  absl::flat_hash_map<NodeId, absl::Status> broken;
};
TreeNodes CollectNodes(RepositoryState& state, const Snapshots& snapshots);

// What is in use: by pack, which of its blocks or nodes.
class LiveMap {
 public:
  void Mark(const PackName& pack, uint32_t item);
  uint64_t Count(const PackName& pack) const;
  bool IsLive(const PackName& pack, uint32_t item) const;

 private:
  struct Marks {
    std::vector<bool> items;
    uint64_t count = 0;
  };
  absl::flat_hash_map<PackName, Marks> packs_;
};

struct LiveData {
  LiveMap blocks;
  LiveMap nodes;  // At the places that readers use.
  TreeNodes tree;
};
// DATA_LOSS if anything cannot be read: then nobody can say what is not in use. For repair, which deletes nothing that
// it could not read, `skip_damage` gives what can be known.
absl::StatusOr<LiveData> FindLiveData(RepositoryState& state, const Snapshots& snapshots, bool skip_damage = false);

}  // namespace still::store
