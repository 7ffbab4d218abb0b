// Rewrites packs: what is alive in them goes to new packs, and the leaves that name moved blocks are stored anew under
// their old ids (docs/format/repository.md, "Prune"). The old packs stay; condemning them is the caller's matter.
#pragma once

#include <cstdint>

#include "absl/container/flat_hash_set.h"
#include "base/status.h"
#include "store/gc/tree_walk.h"
#include "store/repository_state.h"

namespace still::store {

struct RewritePlan {
  absl::flat_hash_set<PackName> data_packs;
  absl::flat_hash_set<PackName> tree_packs;
  // Leave behind what is damaged, instead of failing; the leaves then still name it where it was.
  bool salvage = false;
};

struct RewriteResult {
  uint64_t bytes_written = 0;
  uint64_t blocks_moved = 0;
  // Only with `salvage`: live blocks that could not be moved, but were found in another pack, or nowhere.
  uint64_t blocks_found = 0;
  uint64_t blocks_left = 0;
};

// When it returns OK, everything is durable and in the catalog.
absl::StatusOr<RewriteResult> RewritePacks(RepositoryState& state, const LiveData& live, const RewritePlan& plan);

}  // namespace still::store
