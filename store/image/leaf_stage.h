// LeafStage: the leaves of an image that is being written, in any order. A bounded number is in memory; the others
// wait in an unlinked temporary file. Not thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/fd.h"
#include "base/status.h"
#include "store/image/node.h"

namespace still::store {

// Blocks of a leaf: where they are, and their ids. A place with this pack number: as in the parent image.
inline constexpr uint32_t kParentPack = 0xfffffffe;

struct StagedLeaf {
  std::array<BlockPlace, kBlocksPerLeaf> places;
  std::array<BlockId, kBlocksPerLeaf> ids;  // Zero where the place is zero or the parent's.
};
static_assert(std::is_trivially_copyable_v<StagedLeaf>);

class LeafStage {
 public:
  // 6 KiB a leaf.
  explicit LeafStage(size_t leaves_in_memory = 2048) : leaves_in_memory_(leaves_in_memory) {}

  bool Contains(uint64_t leaf) const { return in_memory_.contains(leaf) || in_file_.contains(leaf); }
  // The leaf, all zero when it is new; valid until the next call.
  absl::StatusOr<StagedLeaf*> Get(uint64_t leaf);
  void Drop(uint64_t leaf);

 private:
  struct InMemory {
    std::unique_ptr<StagedLeaf> leaf;
    std::list<uint64_t>::iterator recency;
  };
  absl::Status SpillOldest();

  const size_t leaves_in_memory_;
  absl::flat_hash_map<uint64_t, InMemory> in_memory_;
  std::list<uint64_t> recency_;  // Most recent first.
  absl::flat_hash_set<uint64_t> in_file_;
  OwnedFd file_;
};

}  // namespace still::store
