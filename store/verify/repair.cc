#include "store/verify/repair.h"

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "store/gc/rewrite.h"
#include "store/gc/tree_walk.h"
#include "store/vanished.h"
#include "store/verify/verify.h"

namespace still::store {
namespace {

// For readers that let go soon: a session that is held over what is to be repaired looks again every few seconds.
constexpr absl::Duration kReaderWait = absl::Seconds(60);

// Copies an object to quarantine/ and deletes it. One that is gone, or that the disk does not give, is only noted.
absl::Status Quarantine(RepositoryState& state, const std::string& object) {
  auto content = state.objects->Get(object, kMaxPackSize);
  if (absl::IsNotFound(content.status())) return absl::OkStatus();
  if (!content.ok()) return content.status();
  STILL_RETURN_IF_ERROR(state.objects->Put(QuarantineObject(object), *content, {.mode = PutMode::kReplace}));
  return state.objects->Delete(object);
}

class Repairer {
 public:
  Repairer(RepositoryState& state, const RepairOptions& options) : state_(state), options_(options) {}

  absl::StatusOr<RepairReport> Run() {
    // A footer or node in the cache must not hide that it is gone from the disk: everything is read anew.
    STILL_ASSIGN_OR_RETURN(VerifyReport before, VerifyRepository(state_, AllData(), *damage_));
    if (before.ok()) return std::move(report_);
    if (damage_->has_newer()) {
      return absl::FailedPreconditionError(
          "repair: a newer version of this program wrote part of it, which this one would take for damaged; update it");
    }
    STILL_RETURN_IF_ERROR(FindKnownManifests());
    if (!options_.dry_run && !known_.empty()) {
      STILL_RETURN_IF_ERROR(PutKnownBack());
      // What they need of damaged packs is to be salvaged, too.
      damage_ = std::make_unique<Damage>();
      STILL_ASSIGN_OR_RETURN(before, VerifyRepository(state_, AllData(), *damage_));
    }
    for (const PackName& pack : damage_->packs()) {
      Act(absl::StrCat(PackObject(pack), ": keep what is whole, set the rest aside"));
    }
    for (const std::string& object : damage_->objects()) {
      if (!known_.contains(object)) Act(absl::StrCat(object, ": set aside, it is not readable"));
    }
    if (options_.dry_run) {
      report_.lost = std::move(before.lost);
      return std::move(report_);
    }
    STILL_RETURN_IF_ERROR(Salvage());
    for (const PackName& pack : damage_->packs()) {
      STILL_RETURN_IF_ERROR(Quarantine(state_, PackObject(pack)));
      state_.packs.Drop(state_.packs.Add(pack));
    }
    for (const std::string& object : damage_->objects()) STILL_RETURN_IF_ERROR(Quarantine(state_, object));
    STILL_RETURN_IF_ERROR(state_.RebuildCatalog());
    Act("catalog: written anew");
    Damage left;
    STILL_ASSIGN_OR_RETURN(VerifyReport after, VerifyRepository(state_, {}, left));
    report_.lost = std::move(after.lost);
    return std::move(report_);
  }

 private:
  VerifyOptions AllData() const { return {.read_data_percent = 100, .progress = options_.progress}; }
  void Act(std::string action) { report_.actions.push_back(std::move(action)); }

  // Of what has vanished or is not readable, what the catalog still has whole.
  absl::Status FindKnownManifests() {
    STILL_ASSIGN_OR_RETURN(std::vector<CatalogVanished> candidates, FindVanished(state_));
    for (const std::string& object : damage_->objects()) {
      absl::string_view id = object;
      if (!absl::ConsumePrefix(&id, "snapshots/")) continue;
      STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> row, state_.catalog().FindSnapshot(id));
      if (row.has_value()) candidates.push_back(VanishedRow(*row, state_.clock.Now()));
    }
    for (CatalogVanished& candidate : candidates) {
      absl::StatusOr<bool> good = HasItsData(state_, candidate);
      if (good.ok() && !damage_->packs().empty()) good = true;  // It may be in one of these.
      if (!good.ok() || !*good) {
        Act(absl::StrCat(Describe(candidate), ": ",
                         good.ok() ? "its data is not in this repository" : "the catalog's copy of it is damaged",
                         "; `still forget` gives it up"));
        continue;
      }
      Act(absl::StrCat(SnapshotObject(candidate.id), ": written anew from the catalog: ", Describe(candidate)));
      known_.emplace(SnapshotObject(candidate.id), std::move(candidate));
    }
    return absl::OkStatus();
  }

  absl::Status PutKnownBack() {
    for (const auto& [object, snapshot] : known_) {
      STILL_RETURN_IF_ERROR(Quarantine(state_, object));
      STILL_RETURN_IF_ERROR(PutBack(state_, snapshot));
    }
    return state_.SyncCatalog();
  }

  // What is in damaged packs and whole goes to new ones.
  absl::Status Salvage() {
    std::vector<std::pair<std::string, absl::Status>> broken_manifests;
    STILL_ASSIGN_OR_RETURN(Snapshots snapshots, ReadAllManifests(state_, &broken_manifests));
    STILL_ASSIGN_OR_RETURN(LiveData live, FindLiveData(state_, snapshots, true));
    RewritePlan plan = {.salvage = true};
    // Of which kind a pack is may be just what cannot be read; a wrong guess finds no frames.
    for (const PackName& pack : damage_->packs()) {
      plan.data_packs.insert(pack);
      plan.tree_packs.insert(pack);
    }
    STILL_ASSIGN_OR_RETURN(RewriteResult result, RewritePacks(state_, live, plan));
    if (result.blocks_moved + result.blocks_found + result.blocks_left > 0) {
      Act(absl::StrCat(result.blocks_moved, " blocks saved, ", result.blocks_found, " found in other packs, ",
                       result.blocks_left, " lost"));
    }
    return absl::OkStatus();
  }

  RepositoryState& state_;
  const RepairOptions& options_;
  std::unique_ptr<Damage> damage_ = std::make_unique<Damage>();
  std::map<std::string, CatalogVanished> known_;  // By the object's name.
  RepairReport report_;
};

}  // namespace

absl::StatusOr<RepairReport> RepairRepository(RepositoryState& state, const RepairOptions& options) {
  std::shared_ptr<void> lease;
  if (options.dry_run) {
    STILL_ASSIGN_OR_RETURN(lease, state.HoldToRead("repair"));
  } else {
    STILL_RETURN_IF_ERROR(state.CheckWritable());
    STILL_ASSIGN_OR_RETURN(lease, state.HoldExclusive("repair", kReaderWait));
    STILL_RETURN_IF_ERROR(state.SyncCatalog());
  }
  return Repairer(state, options).Run();
}

}  // namespace still::store
