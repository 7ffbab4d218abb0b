// BlockIndex: finds where a block is already stored, by its id (docs/format/repository.md, "Finding duplicates").
//
// Holds the block tables of some packs in memory and one hash table over all of them. A pack's table comes in when a
// hook (a sampled id) of it is met, or when somebody asks for the id at one of its places, and goes when it has not
// been used for longest. So memory is bounded, and input in image order, where duplicates come in runs, finds nearly
// all.
//
// A miss may be wrong (the sample's blind spot); a hit never is. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "store/pack/pack_set.h"

namespace still::store {

// The catalog keeps the prefixes of these ids of each pack.
inline constexpr uint64_t kHookModulus = 16;
inline bool IsHook(uint64_t id_prefix, uint64_t modulus = kHookModulus) { return id_prefix % modulus == 0; }

struct BlockIndexLimits {
  size_t loaded_blocks = 1'000'000;  // 32 bytes each.
  size_t hooks = 1'600'000;          // 11 bytes each.
};

class BlockIndex {
 public:
  explicit BlockIndex(PackSet& packs, BlockIndexLimits limits = {});

  // How the packs below are indexed: 1 (every block; all tables are loaded at once) or the modulus of the sample.
  static uint64_t ChooseModulus(uint64_t total_blocks, const BlockIndexLimits& limits = {});

  // Makes a pack's blocks findable: by its table, now; or by its hooks (prefixes of ids).
  void LoadPack(PackNumber pack, Scratch& scratch);
  void AddHooks(PackNumber pack, absl::Span<const uint64_t> prefixes, uint64_t modulus);
  // Blocks of this pack are no longer to be used for anything new.
  void Exclude(PackNumber pack);

  std::optional<BlockPlace> Find(const BlockId& id, Scratch& scratch);
  // The id of the block at a place; nothing when its pack cannot be read or is excluded.
  std::optional<BlockId> IdAt(BlockPlace place, Scratch& scratch);

  // A pack that is being written: its blocks are found at once.
  void BeginPack(PackNumber pack);
  void Append(PackNumber pack, const BlockId& id);  // As the pack's next block.

  uint64_t packs_loaded() const { return packs_loaded_; }
  size_t footprint() const;  // Bytes.

 private:
  struct Table {
    PackNumber pack = 0;
    std::vector<BlockId> ids;
    uint64_t last_used = 0;
    bool pinned = false;  // Still written: cannot be loaded again.
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  // A slot is table (24 bits), block (24), and 16 more bits of the id, which spare most of the wrong comparisons.
  static uint64_t MakeSlot(uint32_t table, uint32_t block, const BlockId& id);
  static uint32_t TableOf(uint64_t slot) { return static_cast<uint32_t>(slot >> 40); }
  static uint32_t BlockOf(uint64_t slot) { return static_cast<uint32_t>(slot >> 16) & 0xffffff; }
  // False for the slots of evicted tables.
  bool IsOf(uint64_t slot, const BlockId& id) const {
    const std::vector<BlockId>& ids = tables_[TableOf(slot)].ids;
    return BlockOf(slot) < ids.size() && ids[BlockOf(slot)] == id;
  }

  uint32_t NewTable(PackNumber pack);
  void Insert(uint32_t table, uint32_t block);
  // The slot that holds `id`, or the empty one where it would go.
  size_t SlotFor(const BlockId& id) const;
  void InsertAll(uint32_t table);
  void Rebuild();
  void EvictBeyondLimit(uint32_t keep);
  std::optional<PackNumber> FindHook(const BlockId& id) const;
  std::optional<BlockPlace> FindLoaded(const BlockId& id);

  PackSet& packs_;
  const BlockIndexLimits limits_;
  std::vector<uint64_t> slots_;
  size_t used_slots_ = 0;
  size_t loaded_ids_ = 0;
  std::vector<Table> tables_;
  std::vector<uint32_t> free_tables_;
  std::vector<uint32_t> evicted_tables_;  // Slots still name them.
  absl::flat_hash_map<PackNumber, uint32_t> table_of_pack_;
  absl::flat_hash_set<PackNumber> unusable_;  // Excluded or damaged.
  absl::flat_hash_set<PackNumber> hooked_;
  // Open addressing too: 32 bits of the id and the pack, kEmpty where free.
  std::vector<uint64_t> hooks_;
  size_t used_hooks_ = 0;
  uint64_t hook_modulus_ = 0;  // 0: no hooks.
  uint64_t now_ = 0;
  uint64_t packs_loaded_ = 0;
};

}  // namespace still::store
