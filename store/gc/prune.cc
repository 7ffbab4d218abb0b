#include "store/gc/prune.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "base/log.h"
#include "store/gc/rewrite.h"
#include "store/gc/tree_walk.h"
#include "store/notes.h"
#include "store/vanished.h"

namespace still::store {
namespace {

// A host that has not looked for longer than this takes what was forgotten meanwhile for vanished.
constexpr absl::Duration kNoteKept = absl::Hours(24 * 400);
constexpr absl::Duration kUnfinishedNoteKept = absl::Hours(24);

class Prune {
 public:
  Prune(RepositoryState& state, const PruneOptions& options, PruneReport& report)
      : state_(state), options_(options), report_(report) {}

  // Finds what is unused and condemns it. Beside anything else that runs.
  absl::Status MarkAndRewrite() {
    STILL_RETURN_IF_ERROR(state_.SyncCatalog());
    STILL_RETURN_IF_ERROR(CheckNothingVanished(state_));
    // Before the manifests are read: what is stored after this moment is not ours to judge.
    STILL_RETURN_IF_ERROR(
        state_.catalog().ForEachPack(false, [this](const CatalogPack& row) { packs_.push_back(row); }));
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> holds, state_.objects->List(kHoldPrefix));
    STILL_ASSIGN_OR_RETURN(Snapshots snapshots, ReadAllManifests(state_, nullptr));
    STILL_RETURN_IF_ERROR(DropHoldsOfNobody(holds, snapshots));
    STILL_RETURN_IF_ERROR(DropOldNotes(snapshots));
    Progress(1);
    STILL_ASSIGN_OR_RETURN(LiveData live, FindLiveData(state_, snapshots));
    Progress(2);
    RewritePlan plan;
    std::vector<const CatalogPack*> condemned;
    for (const CatalogPack& pack : packs_) Judge(pack, live, plan, condemned);
    if (options_.dry_run) return absl::OkStatus();
    if (!plan.data_packs.empty() || !plan.tree_packs.empty()) {
      STILL_ASSIGN_OR_RETURN(RewriteResult result, RewritePacks(state_, live, plan));
      report_.bytes_written = result.bytes_written;
    }
    Progress(3);
    // Only now: everything that was in the rewritten packs is elsewhere, durably.
    for (const CatalogPack* pack : condemned) {
      STILL_RETURN_IF_ERROR(Condemn(state_, NameOf(*pack), state_.clock.Now()));
    }
    return absl::OkStatus();
  }

  // Deletes what has been condemned for long enough. The caller holds the exclusive lease, so no capture runs, and what
  // the manifests reach now is all that is used.
  absl::Status Sweep(const Lease& lease) {
    STILL_RETURN_IF_ERROR(state_.SyncCatalog());
    STILL_RETURN_IF_ERROR(CheckNothingVanished(state_));
    STILL_ASSIGN_OR_RETURN(std::vector<CatalogPack> due, Due());
    if (due.empty()) return absl::OkStatus();
    STILL_ASSIGN_OR_RETURN(Snapshots snapshots, ReadAllManifests(state_, nullptr));
    STILL_ASSIGN_OR_RETURN(LiveData live, FindLiveData(state_, snapshots));
    std::vector<CatalogPack> unused;
    for (const CatalogPack& pack : due) {
      if (LiveItems(pack, live) == 0) {
        unused.push_back(pack);
        continue;
      }
      // A capture that had begun before the pack was condemned has used it.
      LogInfo("condemned pack is used again", {{"pack", PackObject(NameOf(pack))}});
      STILL_RETURN_IF_ERROR(Acquit(state_, NameOf(pack)));
    }
    // The walk above may have taken long, and a host that slept meanwhile is not alone any more.
    STILL_RETURN_IF_ERROR(lease.Check());
    return DeletePacks(unused);
  }

  // Condemned packs whose time has come.
  absl::StatusOr<std::vector<CatalogPack>> Due() {
    std::vector<CatalogPack> due;
    const absl::Time before = state_.clock.Now() - options_.grace;
    report_.packs_waiting = 0;
    report_.bytes_waiting = 0;
    STILL_RETURN_IF_ERROR(state_.catalog().ForEachPack(false, [&](const CatalogPack& row) {
      if (!row.condemned) return;
      if (*row.condemned <= before) {
        due.push_back(row);
      } else {
        ++report_.packs_waiting;
        report_.bytes_waiting += row.size;
      }
    }));
    return due;
  }

  void Progress(uint64_t step) {
    if (options_.progress) options_.progress(step, 4);
  }

 private:
  static uint64_t LiveItems(const CatalogPack& pack, const LiveData& live) {
    const bool is_data = pack.kind == static_cast<int>(PackKind::kData);
    return (is_data ? live.blocks : live.nodes).Count(NameOf(pack));
  }

  void Judge(const CatalogPack& pack, const LiveData& live, RewritePlan& plan,
             std::vector<const CatalogPack*>& condemned) {
    const bool is_data = pack.kind == static_cast<int>(PackKind::kData);
    const uint64_t items = is_data ? pack.blocks : pack.nodes;
    const uint64_t live_items = std::min(items, LiveItems(pack, live));
    if (is_data) {
      report_.live_blocks += live_items;
      report_.dead_blocks += items - live_items;
    }
    if (pack.condemned || live_items == items) return;
    // Young ones may belong to a capture that runs, or to one that was interrupted and will be tried again.
    const absl::Time created = absl::FromUnixNanos(pack.created_unix_ns);
    if (live_items == 0 && created > state_.clock.Now() - options_.grace) return;
    if (live_items > 0 && static_cast<double>(live_items) >= options_.min_live_fraction * static_cast<double>(items)) {
      return;
    }
    if (live_items > 0) {
      (is_data ? plan.data_packs : plan.tree_packs).insert(NameOf(pack));
      ++report_.packs_rewritten;
    }
    ++report_.packs_condemned;
    condemned.push_back(&pack);
  }

  // Left behind when a crash met Forget(). `snapshots` were read after `holds`, so none of them is of a new snapshot.
  absl::Status DropHoldsOfNobody(const std::vector<ObjectInfo>& holds, const Snapshots& snapshots) {
    if (options_.dry_run) return absl::OkStatus();
    absl::flat_hash_set<std::string> of_somebody;
    for (const auto& snapshot : snapshots) of_somebody.insert(HoldObject(snapshot.id()));
    std::vector<std::string> of_nobody;
    for (const ObjectInfo& hold : holds) {
      if (!of_somebody.contains(hold.name)) of_nobody.push_back(hold.name);
    }
    return state_.objects->Delete(of_nobody);
  }

  // Notes of forgetting that every host has had time to see; and, after a day, those of snapshots that are there: a crash met
  // Forget() in between, and should such a snapshot vanish, it was not forgotten.
  absl::Status DropOldNotes(const Snapshots& snapshots) {
    if (options_.dry_run) return absl::OkStatus();
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> notes, state_.objects->List(kForgottenPrefix));
    absl::flat_hash_set<std::string> of_somebody;
    for (const auto& snapshot : snapshots) of_somebody.insert(ForgottenObject(snapshot.id()));
    std::vector<std::string> old;
    for (const ObjectInfo& note : notes) {
      const absl::Duration kept = of_somebody.contains(note.name) ? kUnfinishedNoteKept : kNoteKept;
      if (state_.clock.Now() - note.modified < kept) continue;  // There may be many, and nearly all are young.
      const absl::StatusOr<absl::Time> since = ReadForgotten(state_, note.name);
      if (!since.ok()) continue;  // One that cannot be read says nothing, and costs nothing.
      if (state_.clock.Now() - *since > kept) old.push_back(note.name);
    }
    return state_.objects->Delete(old);
  }

  absl::Status DeletePacks(const std::vector<CatalogPack>& packs) {
    if (packs.empty()) return absl::OkStatus();
    auto remove_rows = [&]() -> absl::Status {
      STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state_.catalog().Begin());
      for (const CatalogPack& pack : packs) STILL_RETURN_IF_ERROR(change.RemovePack(pack.name));
      return change.Commit();
    };
    STILL_RETURN_IF_ERROR(remove_rows());
    std::vector<std::string> objects;
    for (const CatalogPack& pack : packs) objects.push_back(PackObject(NameOf(pack)));
    // The notes last: without its note a pack that is still there would have to be condemned again.
    for (const CatalogPack& pack : packs) objects.push_back(CondemnedObject(NameOf(pack)));
    STILL_RETURN_IF_ERROR(state_.objects->Delete(objects));
    for (const CatalogPack& pack : packs) {
      state_.packs.Drop(state_.packs.Add(NameOf(pack)));
      ++report_.packs_deleted;
      report_.bytes_deleted += pack.size;
    }
    // Somebody who opened the repository in between may have found the packs and listed them again.
    return remove_rows();
  }

  RepositoryState& state_;
  const PruneOptions& options_;
  PruneReport& report_;
  std::vector<CatalogPack> packs_;
};

}  // namespace

absl::StatusOr<PruneReport> PruneRepository(RepositoryState& state, const PruneOptions& options) {
  if (!options.dry_run) STILL_RETURN_IF_ERROR(state.CheckWritable());
  PruneReport report;
  Prune prune(state, options, report);
  {
    STILL_ASSIGN_OR_RETURN(std::shared_ptr<Lease> lease, state.HoldToRead("prune"));
    STILL_RETURN_IF_ERROR(prune.MarkAndRewrite());
  }
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogPack> due, prune.Due());
  auto wait_for_later = [&] {
    report.packs_waiting += due.size();
    for (const CatalogPack& pack : due) report.bytes_waiting += pack.size;
  };
  if (options.dry_run) {
    wait_for_later();
    return report;
  }
  STILL_RETURN_IF_ERROR(state.objects->SweepLeftovers().status());
  if (!due.empty()) {
    auto lease = state.HoldExclusive("sweep", absl::ZeroDuration());
    if (absl::IsUnavailable(lease.status())) {
      wait_for_later();
    } else {
      if (!lease.ok()) return lease.status();
      STILL_RETURN_IF_ERROR(prune.Sweep(**lease));
    }
  }
  prune.Progress(4);
  return report;
}

}  // namespace still::store
