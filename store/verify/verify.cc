#include "store/verify/verify.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <random>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "store/block/bytes.h"
#include "store/crypto/key_ring.h"
#include "store/notes.h"
#include "store/vanished.h"
#include "store/verify/check_pack.h"
#include "store/verify/damage.h"

namespace still::store {
namespace {

// Checks leaves: that they are what their ids say, by the ids of their blocks in the footers of the packs. Thread-safe.
class LeafChecker {
 public:
  LeafChecker(RepositoryState& state, absl::flat_hash_set<PackName> present, Damage& damage)
      : state_(state), present_(std::move(present)), damage_(damage) {}

  absl::Status Check(const NodeId& id, Scratch& scratch) {
    STILL_ASSIGN_OR_RETURN(Leaf leaf, state_.nodes.ReadStoredLeaf(id, scratch));
    std::vector<std::shared_ptr<const OpenPack>> packs;
    for (const PackName& name : leaf.packs) packs.push_back(OpenPresent(name, scratch));
    std::array<BlockId, kBlocksPerLeaf> ids{};
    bool has_all = true;
    for (uint32_t i = 0; i < kBlocksPerLeaf; ++i) {
      const BlockPlace place = leaf.blocks[i];
      if (place.is_zero()) continue;
      const OpenPack* pack = packs[place.pack].get();
      if (pack != nullptr && place.block < pack->footer.blocks.size()) {
        ids[i] = pack->footer.blocks[place.block];
        continue;
      }
      has_all = false;
      if (pack != nullptr) damage_.AddBlock(pack->name, place.block);
    }
    if (!has_all || scratch.hasher.Leaf(ids) == id) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("tree leaf ", absl::BytesToHexString(id.view().substr(0, 8)), "... is not what its id says"));
  }

 private:
  // nullptr, and the damage is noted, if the pack is gone or its footer is broken.
  std::shared_ptr<const OpenPack> OpenPresent(const PackName& name, Scratch& scratch) {
    absl::Status status;
    // A footer may come from the cache although its pack is gone; one that was made since the list is not in it.
    if (!present_.contains(name)) status = state_.objects->Size(PackObject(name)).status();
    if (status.ok()) {
      auto pack = state_.packs.Open(state_.packs.Add(name), scratch);
      if (pack.ok()) return *std::move(pack);
      status = pack.status();
    }
    damage_.AddPack(name);
    damage_.AddProblem(status);
    return nullptr;
  }

  RepositoryState& state_;
  const absl::flat_hash_set<PackName> present_;
  Damage& damage_;
};

absl::Status CheckOptions(const VerifyOptions& options) {
  if (!(options.read_data_percent >= 0 && options.read_data_percent <= 100)) {
    return absl::InvalidArgumentError("verify: the share to read must be 0 to 100 percent");
  }
  const VerifySlice& slice = options.read_slice;
  if (slice.count == 0 && slice.index == 0) return absl::OkStatus();
  if (slice.index >= slice.count) {
    return absl::InvalidArgumentError(absl::StrCat("verify: slice ", slice.index, " of ", slice.count));
  }
  if (options.read_data_percent == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("verify: either a share or a slice");
}

// Names are random, so slices are of about one size.
bool InSlice(const PackName& name, const VerifySlice& slice) {
  return LoadInt<uint64_t>(name.view().data()) % slice.count == slice.index;
}

class Verification {
 public:
  Verification(RepositoryState& state, const VerifyOptions& options, Damage& damage)
      : state_(state), options_(options), damage_(damage) {}

  absl::StatusOr<VerifyReport> Run() {
    std::vector<std::pair<std::string, absl::Status>> broken_manifests;
    STILL_ASSIGN_OR_RETURN(snapshots_, ReadAllManifests(state_, &broken_manifests));
    for (const auto& [name, status] : broken_manifests) {
      damage_.AddObject(name);
      damage_.AddProblem(status);
    }
    report_.snapshots = snapshots_.size();
    STILL_RETURN_IF_ERROR(CheckNotes());
    STILL_RETURN_IF_ERROR(CheckNothingIsGone());
    STILL_RETURN_IF_ERROR(CheckKeys());
    tree_ = CollectNodes(state_, snapshots_);
    report_.nodes = tree_.inner.size() + tree_.leaves.size();
    for (const auto& [id, status] : tree_.broken) {
      damage_.AddNode(id);
      damage_.AddProblem(status);
    }
    STILL_RETURN_IF_ERROR(ChoosePacks());
    total_ = tree_.leaves.size() + packs_.size() * kPackWeight;
    CheckLeaves();
    CheckPacks();
    report_.problems = damage_.problems();
    if (!damage_.empty()) report_.lost = damage_.LostRanges(state_, snapshots_);
    return std::move(report_);
  }

 private:
  // Reading a pack takes about as long as checking so many leaves.
  static constexpr uint64_t kPackWeight = 1000;

  void Advance(uint64_t by) {
    const uint64_t done = done_.fetch_add(by) + by;
    if (!options_.progress) return;
    absl::MutexLock lock(&progress_mutex_);
    options_.progress(done, total_);
  }

  absl::Status CheckNotes() {
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> condemned, state_.objects->List(kCondemnedPrefix));
    for (const ObjectInfo& note : condemned) JudgeNote(note.name, ReadCondemned(state_, note.name).status());
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> holds, state_.objects->List(kHoldPrefix));
    for (const ObjectInfo& note : holds) {
      JudgeNote(note.name, ReadHold(state_, absl::StripPrefix(note.name, kHoldPrefix)).status());
    }
    return absl::OkStatus();
  }
  void JudgeNote(const std::string& object, const absl::Status& status) {
    if (status.ok() || absl::IsNotFound(status)) return;
    damage_.AddObject(object);
    damage_.AddProblem(status);
  }

  absl::Status CheckNothingIsGone() {
    STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, FindVanished(state_));
    for (const CatalogVanished& one : vanished) {
      damage_.AddProblem(absl::StrCat(Describe(one), ": its manifest is gone though nobody has forgotten it"));
    }
    return absl::OkStatus();
  }

  // Each slot is a way in that somebody relies on.
  absl::Status CheckKeys() {
    if (!state_.keys) return absl::OkStatus();
    STILL_ASSIGN_OR_RETURN(std::vector<KeySlotInfo> slots, ListKeys(*state_.objects, *state_.keys));
    for (const KeySlotInfo& slot : slots) {
      if (!slot.status.ok())
        damage_.AddProblem(absl::StrCat("keys/", slot.id, ": ", slot.status.message(), "; revoke it"));
    }
    return absl::OkStatus();
  }

  absl::Status ChoosePacks() {
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects, state_.objects->List("packs/"));
    std::mt19937_64 random(options_.seed);
    std::bernoulli_distribution chosen(options_.read_data_percent / 100);
    const VerifySlice& slice = options_.read_slice;
    for (const ObjectInfo& object : objects) {
      auto name = PackNameOf(object.name);
      if (!name.ok()) {
        damage_.AddProblem(absl::StrCat(object.name, ": does not belong here"));
        continue;
      }
      packs_.push_back({.name = *name, .read_data = slice.count > 0 ? InSlice(*name, slice) : chosen(random)});
    }
    report_.packs = packs_.size();
    return absl::OkStatus();
  }

  void CheckLeaves() {
    // The work itself never fails: what it finds goes into the damage.
    absl::flat_hash_set<PackName> present;
    for (const ChosenPack& pack : packs_) present.insert(pack.name);
    LeafChecker checker(state_, std::move(present), damage_);
    (void)state_.pool.ParallelFor(tree_.leaves.size(), [&](uint64_t i, Scratch& scratch) {
      absl::Status status = checker.Check(tree_.leaves[i], scratch);
      if (!status.ok()) {
        damage_.AddNode(tree_.leaves[i]);
        damage_.AddProblem(status);
      }
      Advance(1);
      return absl::OkStatus();
    });
  }

  void CheckPacks() {
    std::atomic<uint64_t> blocks{0};
    (void)state_.pool.ParallelFor(packs_.size(), [&](uint64_t i, Scratch& scratch) {
      blocks += CheckPack(state_, packs_[i].name, packs_[i].read_data, damage_, scratch);
      Advance(kPackWeight);
      return absl::OkStatus();
    });
    report_.blocks_read = blocks;
  }

  struct ChosenPack {
    PackName name;
    bool read_data;
  };

  RepositoryState& state_;
  const VerifyOptions& options_;
  VerifyReport report_;
  Snapshots snapshots_;
  TreeNodes tree_;
  std::vector<ChosenPack> packs_;
  Damage& damage_;
  std::atomic<uint64_t> done_{0};
  uint64_t total_ = 0;
  absl::Mutex progress_mutex_;
};

}  // namespace

absl::StatusOr<VerifyReport> VerifyRepository(RepositoryState& state, const VerifyOptions& options, Damage& damage) {
  STILL_RETURN_IF_ERROR(CheckOptions(options));
  return Verification(state, options, damage).Run();
}

}  // namespace still::store
