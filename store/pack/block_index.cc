#include "store/pack/block_index.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace still::store {
namespace {

constexpr size_t kFirstSlots = 1 << 12;
constexpr uint32_t kPrefetch = 16;

// Bits of the id that the position in the tables (its prefix) does not use up.
uint64_t Second(const BlockId& id) {
  uint64_t value;
  std::memcpy(&value, id.bytes.data() + 8, sizeof(value));
  return value;
}

bool TooFull(size_t used, size_t slots) { return used * 4 >= slots * 3; }

}  // namespace

BlockIndex::BlockIndex(PackSet& packs, BlockIndexLimits limits)
    : packs_(packs), limits_(limits), slots_(kFirstSlots, kEmpty) {}

uint64_t BlockIndex::ChooseModulus(uint64_t total_blocks, const BlockIndexLimits& limits) {
  if (total_blocks <= limits.loaded_blocks) return 1;
  uint64_t modulus = kHookModulus;
  while (total_blocks / modulus > limits.hooks) modulus *= 2;
  return modulus;
}

uint64_t BlockIndex::MakeSlot(uint32_t table, uint32_t block, const BlockId& id) {
  return uint64_t{table} << 40 | uint64_t{block} << 16 | (Second(id) & 0xffff);
}

uint32_t BlockIndex::NewTable(PackNumber pack) {
  uint32_t table = static_cast<uint32_t>(tables_.size());
  if (free_tables_.empty()) {
    tables_.emplace_back();
  } else {
    table = free_tables_.back();
    free_tables_.pop_back();
  }
  tables_[table] = {.pack = pack, .last_used = ++now_};
  table_of_pack_[pack] = table;
  return table;
}

size_t BlockIndex::SlotFor(const BlockId& id) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t tag = Second(id) & 0xffff;
  size_t at = id.prefix() & mask;
  while (slots_[at] != kEmpty && !((slots_[at] & 0xffff) == tag && IsOf(slots_[at], id))) at = (at + 1) & mask;
  return at;
}

void BlockIndex::Insert(uint32_t table, uint32_t block) {
  if (TooFull(used_slots_ + 1, slots_.size())) Rebuild();
  const BlockId& id = tables_[table].ids[block];
  const size_t at = SlotFor(id);
  if (slots_[at] != kEmpty) return;  // Stored twice: the place that is known stays.
  slots_[at] = MakeSlot(table, block, id);
  ++used_slots_;
}

// A table's ids are all over the slots, so each insertion would wait for memory: the slots are asked for ahead.
void BlockIndex::InsertAll(uint32_t table) {
  const std::vector<BlockId>& ids = tables_[table].ids;
  for (uint32_t block = 0; block < ids.size(); ++block) {
    if (block + kPrefetch < ids.size()) {
      __builtin_prefetch(&slots_[ids[block + kPrefetch].prefix() & (slots_.size() - 1)], 1);
    }
    Insert(table, block);
  }
}

// The slots of evicted tables stay until there are too many: then all are made anew from the tables. That is much less
// work than to look for each of them when a table goes.
void BlockIndex::Rebuild() {
  size_t size = slots_.size();
  while (loaded_ids_ * 2 >= size) size *= 2;
  slots_.assign(size, kEmpty);
  used_slots_ = 0;
  for (uint32_t table : evicted_tables_) free_tables_.push_back(table);
  evicted_tables_.clear();
  for (const auto& [pack, table] : table_of_pack_) InsertAll(table);
}

void BlockIndex::EvictBeyondLimit(uint32_t keep) {
  while (loaded_ids_ > limits_.loaded_blocks) {
    std::optional<uint32_t> oldest;
    for (const auto& [pack, table] : table_of_pack_) {
      if (table == keep || tables_[table].pinned) continue;
      if (!oldest || tables_[table].last_used < tables_[*oldest].last_used) oldest = table;
    }
    if (!oldest) return;
    Table& table = tables_[*oldest];
    // From now on by its sample, like the packs that were never loaded.
    if (!hooked_.contains(table.pack)) {
      std::vector<uint64_t> prefixes;
      for (const BlockId& id : table.ids) {
        if (IsHook(id.prefix())) prefixes.push_back(id.prefix());
      }
      AddHooks(table.pack, prefixes, std::max(hook_modulus_, kHookModulus));
    }
    loaded_ids_ -= table.ids.size();
    table_of_pack_.erase(table.pack);
    table = {};
    evicted_tables_.push_back(*oldest);
  }
}

void BlockIndex::LoadPack(PackNumber pack, Scratch& scratch) {
  if (unusable_.contains(pack) || table_of_pack_.contains(pack)) return;
  auto opened = packs_.Load(pack, scratch);
  if (!opened.ok()) {
    // Not an error of this capture: its blocks are stored again.
    LogWarning("pack not usable for deduplication", {{"error", opened.status().ToString()}});
    unusable_.insert(pack);
    return;
  }
  ++packs_loaded_;
  const uint32_t table = NewTable(pack);
  tables_[table].ids = (*opened)->footer.blocks;
  loaded_ids_ += tables_[table].ids.size();
  // First, so that a table that is made anew meanwhile holds only what stays.
  EvictBeyondLimit(table);
  InsertAll(table);
}

void BlockIndex::AddHooks(PackNumber pack, absl::Span<const uint64_t> prefixes, uint64_t modulus) {
  hook_modulus_ = modulus;
  hooked_.insert(pack);
  for (uint64_t prefix : prefixes) {
    if (!IsHook(prefix, modulus)) continue;
    if (TooFull(used_hooks_ + 1, hooks_.size())) {
      std::vector<uint64_t> old(std::max(kFirstSlots, hooks_.size() * 2), kEmpty);
      old.swap(hooks_);
      // Position and tag come from the same 64 bits, of which the slot keeps the upper 40, so positions use only those.
      for (uint64_t hook : old) {
        if (hook == kEmpty) continue;
        size_t at = (hook >> 24) & (hooks_.size() - 1);
        while (hooks_[at] != kEmpty) at = (at + 1) & (hooks_.size() - 1);
        hooks_[at] = hook;
      }
    }
    STILL_CHECK(pack < 0xffffff);
    size_t at = (prefix >> 24) & (hooks_.size() - 1);
    while (hooks_[at] != kEmpty) at = (at + 1) & (hooks_.size() - 1);
    hooks_[at] = (prefix & ~uint64_t{0xffffff}) | pack;
    ++used_hooks_;
  }
}

std::optional<PackNumber> BlockIndex::FindHook(const BlockId& id) const {
  if (hooks_.empty()) return std::nullopt;
  const size_t mask = hooks_.size() - 1;
  for (size_t at = (id.prefix() >> 24) & mask; hooks_[at] != kEmpty; at = (at + 1) & mask) {
    const auto pack = static_cast<PackNumber>(hooks_[at] & 0xffffff);
    if (hooks_[at] >> 24 == id.prefix() >> 24 && !unusable_.contains(pack)) return pack;
  }
  return std::nullopt;
}

void BlockIndex::Exclude(PackNumber pack) { unusable_.insert(pack); }

std::optional<BlockPlace> BlockIndex::FindLoaded(const BlockId& id) {
  const uint64_t slot = slots_[SlotFor(id)];
  if (slot == kEmpty) return std::nullopt;
  Table& table = tables_[TableOf(slot)];
  table.last_used = ++now_;
  return BlockPlace{.pack = table.pack, .block = BlockOf(slot)};
}

std::optional<BlockPlace> BlockIndex::Find(const BlockId& id, Scratch& scratch) {
  if (auto place = FindLoaded(id)) return place;
  if (hook_modulus_ == 0 || !IsHook(id.prefix(), hook_modulus_)) return std::nullopt;
  std::optional<PackNumber> pack = FindHook(id);
  if (!pack || table_of_pack_.contains(*pack)) return std::nullopt;
  LoadPack(*pack, scratch);
  return FindLoaded(id);
}

std::optional<BlockId> BlockIndex::IdAt(BlockPlace place, Scratch& scratch) {
  if (unusable_.contains(place.pack)) return std::nullopt;
  auto at = table_of_pack_.find(place.pack);
  if (at == table_of_pack_.end()) {
    LoadPack(place.pack, scratch);
    at = table_of_pack_.find(place.pack);
    if (at == table_of_pack_.end()) return std::nullopt;
  }
  Table& table = tables_[at->second];
  table.last_used = ++now_;
  if (place.block >= table.ids.size()) return std::nullopt;
  return table.ids[place.block];
}

void BlockIndex::BeginPack(PackNumber pack) {
  for (Table& table : tables_) table.pinned = false;
  const uint32_t table = NewTable(pack);
  tables_[table].pinned = true;
}

void BlockIndex::Append(PackNumber pack, const BlockId& id) {
  const uint32_t table = table_of_pack_.at(pack);
  tables_[table].ids.push_back(id);
  ++loaded_ids_;
  Insert(table, static_cast<uint32_t>(tables_[table].ids.size() - 1));
  if (loaded_ids_ > limits_.loaded_blocks) EvictBeyondLimit(table);
}

size_t BlockIndex::footprint() const {
  size_t ids = 0;
  for (const Table& table : tables_) ids += table.ids.capacity() * sizeof(BlockId);
  return ids + (slots_.capacity() + hooks_.capacity()) * sizeof(uint64_t) + tables_.capacity() * sizeof(Table);
}

}  // namespace still::store
