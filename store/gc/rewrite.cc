#include "store/gc/rewrite.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "store/gc/scan_pack.h"
#include "store/pack/data_writer.h"
#include "store/pack/tree_writer.h"

namespace still::store {
namespace {

constexpr int kBuffersUnderWay = 64;

class Rewriter {
 public:
  Rewriter(RepositoryState& state, const LiveData& live, const RewritePlan& plan)
      : state_(state), live_(live), plan_(plan), tree_(state.packs, state.config.compression) {}

  absl::StatusOr<RewriteResult> Run() {
    STILL_RETURN_IF_ERROR(ChooseCreated());
    STILL_RETURN_IF_ERROR(MoveBlocks());
    STILL_RETURN_IF_ERROR(MoveNodes());
    STILL_RETURN_IF_ERROR(PublishTrees());
    STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state_.catalog().Begin());
    STILL_RETURN_IF_ERROR(PutPackRows(state_, change, published_));
    STILL_RETURN_IF_ERROR(change.Commit());
    for (const PackSummary& pack : published_) result_.bytes_written += pack.size;
    return result_;
  }

 private:
  // Of several places of a node readers take the youngest pack's, so ours must be younger than all, whatever the clock
  // says.
  absl::Status ChooseCreated() {
    created_ = state_.clock.Now();
    return state_.catalog().ForEachPack(false, [this](const CatalogPack& row) {
      created_ = std::max(created_, absl::FromUnixNanos(row.created_unix_ns) + absl::Nanoseconds(1));
    });
  }

  absl::Status MoveBlocks() {
    if (plan_.data_packs.empty()) return absl::OkStatus();
    Throttle throttle(kBuffersUnderWay);
    DataWriter writer(state_.packs, state_.pool, throttle,
                      {.compression = state_.config.compression,
                       .clock = &state_.clock,
                       .on_published =
                           [this](const PackSummary& pack) {
                             absl::MutexLock lock(&mutex_);
                             published_.push_back(pack);
                             return absl::OkStatus();
                           },
                       .on_pack_begun = [](PackNumber) {}});
    std::shared_ptr<Scratch> scratch = state_.pool.Borrow();
    // Sorted, so that the same repository is rewritten in the same way.
    std::vector<PackName> names(plan_.data_packs.begin(), plan_.data_packs.end());
    std::sort(names.begin(), names.end());
    for (const PackName& name : names) {
      auto move = [&](uint32_t frame, absl::string_view bytes) -> absl::Status {
        // Waits until the workers have caught up; Add does not.
        throttle.Take();
        throttle.Give();
        return MoveGroup(name, frame, bytes, writer, *scratch);
      };
      auto wanted = [&](uint32_t frame) {
        for (uint32_t i = 0; i < kBlocksPerGroup; ++i) {
          if (Moves(name, static_cast<uint32_t>(frame * kBlocksPerGroup + i))) return true;
        }
        return false;
      };
      STILL_RETURN_IF_ERROR(
          ScanPack(state_, name, {.frames = FrameKind::kGroup, .skip_damage = plan_.salvage}, wanted, move, *scratch));
      if (plan_.salvage) NoteLost(name, *scratch);
    }
    STILL_RETURN_IF_ERROR(writer.Flush());
    return FindLostElsewhere(*scratch);
  }

  // What is alive and was not moved. Its ids are known as long as the footer is, here or in quarantine.
  void NoteLost(const PackName& name, Scratch& scratch) {
    auto pack = state_.packs.Load(state_.packs.Add(name), scratch);
    if (!pack.ok()) pack = state_.packs.LoadFromCopy(name, QuarantineObject(PackObject(name)), scratch);
    const uint64_t live = live_.blocks.Count(name);
    for (uint32_t block = 0; block < kMaxPackBlocks && live > 0; ++block) {
      if (!live_.blocks.IsLive(name, block) || moved_[name].contains(block)) continue;
      ++result_.blocks_left;
      if (pack.ok() && block < (*pack)->footer.blocks.size()) {
        lost_[(*pack)->footer.blocks[block]].emplace_back(name, block);
      }
    }
  }

  // The same content may be elsewhere: stored by two captures at once, or captured again since.
  absl::Status FindLostElsewhere(Scratch& scratch) {
    for (const auto& [id, place] : saved_) FoundLost(id, place);
    std::vector<PackName> others;
    STILL_RETURN_IF_ERROR(state_.catalog().ForEachPack(false, [&](const CatalogPack& row) {
      if (!plan_.data_packs.contains(NameOf(row))) others.push_back(NameOf(row));
    }));
    for (const PackName& name : others) {
      if (lost_.empty()) break;
      auto pack = state_.packs.Load(state_.packs.Add(name), scratch);
      if (!pack.ok()) continue;
      const std::vector<BlockId>& blocks = (*pack)->footer.blocks;
      for (uint32_t i = 0; i < blocks.size(); ++i) FoundLost(blocks[i], {.pack = (*pack)->number, .block = i});
    }
    return absl::OkStatus();
  }

  void FoundLost(const BlockId& id, BlockPlace place) {
    auto lost = lost_.find(id);
    if (lost == lost_.end()) return;
    for (const auto& [pack, block] : lost->second) moved_[pack][block] = place;
    result_.blocks_found += lost->second.size();
    result_.blocks_left -= lost->second.size();
    lost_.erase(lost);
  }

  // Where trees are damaged too, what is alive is not known: everything that is whole is saved.
  bool Moves(const PackName& pack, uint32_t block) const { return plan_.salvage || live_.blocks.IsLive(pack, block); }

  absl::Status MoveGroup(const PackName& name, uint32_t frame, absl::string_view bytes, DataWriter& writer,
                         Scratch& scratch) {
    for (uint32_t i = 0; i * kBlockSize < bytes.size(); ++i) {
      const auto block = static_cast<uint32_t>(frame * kBlocksPerGroup + i);
      if (!Moves(name, block)) continue;
      const char* data = bytes.data() + i * kBlockSize;
      // The new id is the hash of what is there. If that is not what the leaf means, the leaf's own id tells, and
      // verify finds it.
      const BlockId id = scratch.hasher.Block(data);
      STILL_ASSIGN_OR_RETURN(const BlockPlace place, writer.Add(id, data));
      moved_[name][block] = place;
      if (plan_.salvage) saved_.emplace(id, place);
      ++result_.blocks_moved;
    }
    return absl::OkStatus();
  }

  absl::Status MoveNodes() {
    std::shared_ptr<Scratch> scratch = state_.pool.Borrow();
    for (const NodeId& id : live_.tree.inner) {
      if (!InMovedTreePack(id)) continue;
      STILL_ASSIGN_OR_RETURN(InnerNode node, state_.nodes.ReadInner(id, *scratch));
      STILL_RETURN_IF_ERROR(tree_.Add(id, EncodeInner(node.level, node.children), created_));
    }
    // In order, so that the new tree packs are in the images' order too.
    for (const NodeId& id : live_.tree.leaves) {
      auto leaf = state_.nodes.ReadStoredLeaf(id, *scratch);
      if (leaf.ok()) {
        STILL_RETURN_IF_ERROR(MoveLeaf(id, *leaf));
      } else if (!plan_.salvage) {
        return leaf.status();
      }
    }
    return plan_.salvage ? SalvageNodes(*scratch) : absl::OkStatus();
  }

  // Of damaged tree packs everything that is whole is kept, used or not: what is used below a broken node is not known.
  absl::Status SalvageNodes(Scratch& scratch) {
    for (const PackName& name : plan_.tree_packs) {
      std::shared_ptr<Scratch> hashing = state_.pool.Borrow();
      auto keep = [&](uint32_t, absl::string_view payload) -> absl::Status {
        for (absl::string_view node : SplitNodes(payload)) {
          STILL_RETURN_IF_ERROR(IsLeaf(node) ? SalvageLeaf(node, *hashing) : SalvageInner(node, *hashing));
        }
        return absl::OkStatus();
      };
      const ScanOptions options = {.frames = FrameKind::kNodes, .skip_damage = true};
      STILL_RETURN_IF_ERROR(ScanPack(
          state_, name, options, [](uint32_t) { return true; }, keep, scratch));
    }
    return absl::OkStatus();
  }

  absl::Status SalvageInner(absl::string_view bytes, Scratch& scratch) {
    STILL_ASSIGN_OR_RETURN(InnerNode node, ParseInner(bytes));
    return tree_.Add(scratch.hasher.Inner(node.level, node.children), bytes, created_);
  }

  // The id of a leaf follows from the ids of its blocks, in the packs where they are now.
  absl::Status SalvageLeaf(absl::string_view bytes, Scratch& scratch) {
    STILL_ASSIGN_OR_RETURN(Leaf stored, ParseLeaf(bytes));
    const Leaf leaf = Redirect(stored);
    std::array<BlockId, kBlocksPerLeaf> ids{};
    for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
      const BlockPlace place = leaf.blocks[i];
      if (place.is_zero()) continue;
      auto pack = state_.packs.Open(state_.packs.Add(leaf.packs[place.pack]), scratch);
      // Without the ids of all blocks nobody can say whose leaf this was.
      if (!pack.ok() || place.block >= (*pack)->footer.blocks.size()) return absl::OkStatus();
      ids[i] = (*pack)->footer.blocks[place.block];
    }
    return tree_.Add(scratch.hasher.Leaf(ids), EncodeLeaf(leaf), created_);
  }

  bool InMovedTreePack(const NodeId& id) {
    if (plan_.tree_packs.empty()) return false;
    auto places = state_.FindNode(id);
    return places.ok() && plan_.tree_packs.contains(places->front().pack);
  }

  absl::Status MoveLeaf(const NodeId& id, const Leaf& stored) {
    bool moves = InMovedTreePack(id);
    for (const PackName& pack : stored.packs) moves = moves || moved_.contains(pack);
    if (!moves) return absl::OkStatus();
    return tree_.Add(id, EncodeLeaf(Redirect(stored)), created_);
  }

  Leaf Redirect(const Leaf& stored) {
    Leaf leaf;
    absl::flat_hash_map<PackName, uint32_t> indexes;
    for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
      const BlockPlace old = stored.blocks[i];
      if (old.is_zero()) continue;
      PackName name = stored.packs[old.pack];
      uint32_t block = old.block;
      if (auto pack = moved_.find(name); pack != moved_.end()) {
        if (auto place = pack->second.find(block); place != pack->second.end()) {
          name = state_.packs.NameOf(place->second.pack);
          block = place->second.block;
        }
      }
      auto [at, is_new] = indexes.try_emplace(name, static_cast<uint32_t>(leaf.packs.size()));
      if (is_new) leaf.packs.push_back(name);
      leaf.blocks[i] = {.pack = at->second, .block = block};
    }
    return leaf;
  }

  absl::Status PublishTrees() {
    STILL_ASSIGN_OR_RETURN(std::vector<PackWriter::Ended> trees, tree_.TakePacks());
    std::vector<std::unique_ptr<ObjectWriter>> objects;
    for (PackWriter::Ended& tree : trees) {
      objects.push_back(std::move(tree.object));
      published_.push_back(std::move(tree.summary));
    }
    if (objects.empty()) return absl::OkStatus();
    return state_.objects->Publish(std::move(objects));
  }

  RepositoryState& state_;
  const LiveData& live_;
  const RewritePlan& plan_;
  TreeWriter tree_;
  absl::Time created_;
  // Where blocks went.
  absl::flat_hash_map<PackName, absl::flat_hash_map<uint32_t, BlockPlace>> moved_;
  // With `salvage`: what was saved by id, and which blocks were not.
  absl::flat_hash_map<BlockId, BlockPlace> saved_;
  absl::flat_hash_map<BlockId, std::vector<std::pair<PackName, uint32_t>>> lost_;
  absl::Mutex mutex_;
  std::vector<PackSummary> published_;
  RewriteResult result_;
};

}  // namespace

absl::StatusOr<RewriteResult> RewritePacks(RepositoryState& state, const LiveData& live, const RewritePlan& plan) {
  return Rewriter(state, live, plan).Run();
}

}  // namespace still::store
