// The part of RepositoryState that keeps the catalog in step with what is stored.
//
// The catalog's rows are always read before the objects are listed: a row is written after its object, so an object
// that is then missing from the list really is gone. The other way round, an object without a row may be one whose
// writer is just about to add it; that writer, or we, find the row there already.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "store/notes.h"
#include "store/repository_state.h"
#include "store/vanished.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

constexpr char kPacksFolder[] = "packs/";
constexpr char kSnapshotsFolder[] = "snapshots/";

// A folder of objects as the store says it is, and as the catalog knows it. Looked at before rows are read and objects
// listed: what changes meanwhile makes what is then remembered untrue, and that shows.
class FolderAsListed {
 public:
  static absl::StatusOr<FolderAsListed> Look(RepositoryState& state, const char* folder) {
    FolderAsListed look(folder);
    STILL_ASSIGN_OR_RETURN(look.known_, state.catalog().FindListing(folder));
    STILL_ASSIGN_OR_RETURN(look.stamp_, state.objects->Stamp(folder));
    return look;
  }
  // Each object has its row, and each row its object.
  bool unchanged() const { return !stamp_.empty() && stamp_ == known_.stamp; }
  // That it is so now. Whoever finds that it is not adds the rows, and the next open finds it to be so.
  void Remember(Catalog& catalog) const {
    if (stamp_.empty() || stamp_ == known_.stamp) return;
    const absl::Status kept = catalog.RememberListing(folder_, {.stamp = stamp_, .changes = known_.changes});
    // It only costs the next open a listing. Somebody who writes is no trouble at all.
    if (!kept.ok() && !absl::IsUnavailable(kept)) {
      LogWarning("what was listed is not remembered", {{"folder", folder_}, {"error", kept.ToString()}});
    }
  }

 private:
  explicit FolderAsListed(const char* folder) : folder_(folder) {}
  const char* folder_;
  CatalogListing known_;
  std::string stamp_;
};

// A damaged note counts as written now, which only makes its pack wait longer.
absl::Time CondemnedSince(const RepositoryState& state, const std::string& note) {
  return ReadCondemned(state, note).value_or(state.clock.Now());
}

// Footers of packs by name; those that cannot be read are left out, and logged.
std::vector<PackSummary> ReadPacks(RepositoryState& state, const std::vector<PackName>& names) {
  std::vector<PackSummary> packs(names.size());
  std::vector<char> is_read(names.size());
  absl::Status status = state.pool.ParallelFor(names.size(), [&](uint64_t i, Scratch& scratch) {
    auto pack = state.packs.Load(state.packs.Add(names[i]), scratch);
    if (pack.ok()) {
      packs[i] = Summarize(**pack, state.keys.has_value());
      is_read[i] = 1;
    } else if (!absl::IsNotFound(pack.status())) {
      LogWarning("pack not readable", {{"error", pack.status().ToString()}});
    }
    return absl::OkStatus();
  });
  std::vector<PackSummary> read;
  for (size_t i = 0; i < names.size(); ++i) {
    if (status.ok() && is_read[i] != 0) read.push_back(std::move(packs[i]));
  }
  return read;
}

// The manifests of these objects but those whose ids are `known`, which are taken from it; earliest commit first. What
// cannot be read is left out, and logged.
std::vector<manifest::Snapshot> ReadManifests(RepositoryState& state, const std::vector<ObjectInfo>& objects,
                                              absl::flat_hash_set<std::string>& known) {
  std::vector<manifest::Snapshot> snapshots;
  for (const ObjectInfo& object : objects) {
    absl::string_view id = object.name;
    if (!absl::ConsumePrefix(&id, kSnapshotsFolder) || known.erase(id) != 0) continue;
    auto snapshot = ReadManifest(state, id);
    if (snapshot.ok()) {
      snapshots.push_back(*std::move(snapshot));
    } else if (!absl::IsNotFound(snapshot.status())) {
      LogWarning("manifest not readable", {{"error", snapshot.status().ToString()}});
    }
  }
  std::sort(snapshots.begin(), snapshots.end(), [](const manifest::Snapshot& a, const manifest::Snapshot& b) {
    return std::make_tuple(a.sequence(), a.committed_unix_ns(), a.id()) <
           std::make_tuple(b.sequence(), b.committed_unix_ns(), b.id());
  });
  return snapshots;
}

// Of those that had vanished, the ids of which are there again, and `whole`, or have been forgotten since.
absl::StatusOr<std::vector<std::string>> NotVanishedAfterAll(RepositoryState& state,
                                                             const std::vector<manifest::Snapshot>& whole) {
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, state.catalog().ListVanished());
  std::vector<std::string> ids;
  if (vanished.empty()) return ids;
  absl::flat_hash_set<std::string> there;
  for (const manifest::Snapshot& snapshot : whole) there.insert(snapshot.id());
  for (const CatalogVanished& one : vanished) {
    STILL_ASSIGN_OR_RETURN(const bool forgotten, IsForgotten(state, one.id));
    if (forgotten || there.contains(one.id)) ids.push_back(one.id);
  }
  return ids;
}

// Of manifests that are there and cannot be read, what the old catalog knows, so that repair can write them anew.
std::vector<CatalogVanished> KnownButNotWhole(RepositoryState& state, const std::vector<ObjectInfo>& objects,
                                              const std::vector<manifest::Snapshot>& whole) {
  std::vector<CatalogVanished> known;
  if (!state.has_catalog()) return known;
  absl::flat_hash_set<std::string> read;
  for (const manifest::Snapshot& snapshot : whole) read.insert(snapshot.id());
  for (const ObjectInfo& object : objects) {
    absl::string_view id = object.name;
    if (!absl::ConsumePrefix(&id, kSnapshotsFolder) || read.contains(id)) continue;
    const auto row = state.catalog().FindSnapshot(id);
    if (row.ok() && row->has_value()) known.push_back(VanishedRow(**row, state.clock.Now()));
  }
  return known;
}

// Adds the rows of those that are not in `rows` (id, name).
absl::Status PutSnapshotRows(CatalogTransaction& change, const std::vector<manifest::Snapshot>& snapshots,
                             const std::vector<std::pair<std::string, std::string>>& rows) {
  absl::flat_hash_set<std::string> ids;
  absl::flat_hash_set<std::string> names;
  for (const auto& [id, name] : rows) {
    ids.insert(id);
    names.insert(name);
  }
  for (const manifest::Snapshot& snapshot : snapshots) {
    if (!ids.insert(snapshot.id()).second) continue;
    CatalogSnapshot row = ToRow(snapshot);
    if (!row.name.empty() && !names.insert(row.name).second) {
      // Users with catalogs of their own can both take it. The later one stays reachable by its id.
      LogWarning("two snapshots of one name", {{"name", row.name}, {"id", row.id}});
      row.name.clear();
    }
    STILL_RETURN_IF_ERROR(change.PutSnapshot(row));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RepositoryState::ChooseCatalogPath(const std::string& catalog_path) {
  catalog_path_ = catalog_path;
  if (!catalog_path_.empty()) return absl::OkStatus();
  // One that cannot be written to keeps its readers' catalogs where those of encrypted ones are.
  STILL_ASSIGN_OR_RETURN(catalog_path_, CatalogPath(path, config.hex_id(), config.encrypted || read_only.has_value()));
  return absl::OkStatus();
}

absl::Status RepositoryState::OpenCatalog(const std::string& catalog_path) {
  STILL_RETURN_IF_ERROR(ChooseCatalogPath(catalog_path));
  STILL_ASSIGN_OR_RETURN(catalog_, Catalog::Open(catalog_options()));
  STILL_RETURN_IF_ERROR(FillSequences());
  return SyncCatalog(Listing::kUnlessUnchanged);
}

// Rows that an older version of the catalog made know neither the order of commits nor whose they are.
absl::Status RepositoryState::FillSequences() {
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogSnapshot> rows, catalog_->ListUnsequenced());
  if (rows.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog_->Begin());
  for (CatalogSnapshot& row : rows) {
    // One that cannot be parsed is told of by whoever needs it.
    if (auto snapshot = ParseManifest(row.manifest, row.id); snapshot.ok()) row = ToRow(*snapshot);
    STILL_RETURN_IF_ERROR(change.SetSequence(row));
  }
  return change.Commit();
}

absl::Status RepositoryState::SyncCatalog(Listing listing) {
  STILL_RETURN_IF_ERROR(SyncPacks(listing));
  STILL_RETURN_IF_ERROR(SyncCondemned());
  return SyncSnapshots(listing);
}

absl::Status RepositoryState::SyncPacks(Listing listing) {
  STILL_ASSIGN_OR_RETURN(const FolderAsListed folder, FolderAsListed::Look(*this, kPacksFolder));
  if (listing == Listing::kUnlessUnchanged && folder.unchanged()) return absl::OkStatus();
  absl::flat_hash_set<PackName> gone;
  STILL_RETURN_IF_ERROR(catalog_->ForEachPack(false, [&](const CatalogPack& row) { gone.insert(NameOf(row)); }));
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects_there, objects->List(kPacksFolder));
  std::vector<PackName> unknown;
  for (const ObjectInfo& object : objects_there) {
    auto name = PackNameOf(object.name);
    if (name.ok() && gone.erase(*name) == 0) unknown.push_back(*name);
  }
  if (unknown.empty() && gone.empty()) {
    folder.Remember(*catalog_);
    return absl::OkStatus();
  }
  // From here on new snapshots may use them, and whoever published them may have died before they were durable.
  std::vector<std::string> found;
  for (const PackName& name : unknown) found.push_back(PackObject(name));
  if (!read_only) STILL_RETURN_IF_ERROR(objects->Settle(found));
  const std::vector<PackSummary> read = ReadPacks(*this, unknown);
  if (read.empty() && gone.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog_->Begin());
  for (const PackName& name : gone) STILL_RETURN_IF_ERROR(change.RemovePack(name.view()));
  STILL_RETURN_IF_ERROR(PutPackRows(*this, change, read));
  return change.Commit();
}

absl::Status RepositoryState::SyncCondemned() {
  absl::flat_hash_map<std::string, PackName> packs_by_note;
  absl::flat_hash_set<std::string> rows_condemned;
  STILL_RETURN_IF_ERROR(catalog_->ForEachPack(false, [&](const CatalogPack& row) {
    const std::string note = CondemnedObject(NameOf(row));
    packs_by_note[note] = NameOf(row);
    if (row.condemned) rows_condemned.insert(note);
  }));
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> notes, objects->List(kCondemnedPrefix));
  std::vector<std::pair<PackName, std::optional<absl::Time>>> changes;
  for (const ObjectInfo& note : notes) {
    auto pack = packs_by_note.find(note.name);
    if (pack == packs_by_note.end() || rows_condemned.erase(note.name) != 0) continue;
    changes.emplace_back(pack->second, CondemnedSince(*this, note.name));
  }
  for (const std::string& note : rows_condemned) changes.emplace_back(packs_by_note[note], std::nullopt);
  if (changes.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog_->Begin());
  for (const auto& [pack, when] : changes) STILL_RETURN_IF_ERROR(change.SetCondemned(pack.view(), when));
  return change.Commit();
}

absl::Status RepositoryState::SyncSnapshots(Listing listing) {
  STILL_ASSIGN_OR_RETURN(const bool asks_for_notes, catalog_->AsksForNotes());
  STILL_ASSIGN_OR_RETURN(const FolderAsListed folder, FolderAsListed::Look(*this, kSnapshotsFolder));
  if (listing == Listing::kUnlessUnchanged && folder.unchanged() && asks_for_notes) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(auto rows, catalog_->ListSnapshotNames());
  absl::flat_hash_set<std::string> gone;
  for (const auto& [id, name] : rows) gone.insert(id);
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects_there, objects->List(kSnapshotsFolder));
  const std::vector<manifest::Snapshot> unknown = ReadManifests(*this, objects_there, gone);
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> not_vanished, NotVanishedAfterAll(*this, unknown));
  if (unknown.empty() && gone.empty() && not_vanished.empty() && asks_for_notes) {
    // One that cannot be read has no row, and is tried again by the next.
    if (objects_there.size() == rows.size()) folder.Remember(*catalog_);
    return absl::OkStatus();
  }
  absl::flat_hash_set<std::string> vanished;
  for (const std::string& id : gone) {
    STILL_ASSIGN_OR_RETURN(const bool forgotten, IsForgotten(*this, id));
    // What was gone before may have been forgotten by a version that left no note of it.
    if (!forgotten && asks_for_notes) vanished.insert(id);
  }
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog_->Begin());
  if (!asks_for_notes) STILL_RETURN_IF_ERROR(change.AskForNotes());
  for (const std::string& id : not_vanished) STILL_RETURN_IF_ERROR(change.RemoveVanished(id));
  for (const std::string& id : gone) {
    if (!vanished.contains(id)) {
      STILL_RETURN_IF_ERROR(change.RemoveSnapshot(id));
      continue;
    }
    LogError("a snapshot has vanished though nobody has forgotten it", {{"id", id}, {"repository", path}});
    STILL_RETURN_IF_ERROR(change.SetVanished(id, clock.Now()));
  }
  // Others may have added rows meanwhile; now nobody can. Names of the rows that are gone are free.
  STILL_ASSIGN_OR_RETURN(rows, catalog_->ListSnapshotNames());
  std::erase_if(rows, [&](const auto& row) { return gone.contains(row.first); });
  STILL_RETURN_IF_ERROR(PutSnapshotRows(change, unknown, rows));
  return change.Commit();
}

absl::Status RepositoryState::RebuildCatalog(const std::string& catalog_path) {
  STILL_RETURN_IF_ERROR(ChooseCatalogPath(catalog_path));
  if (auto old = Catalog::Open(catalog_options()); old.ok()) catalog_ = *std::move(old);
  return RebuildCatalog();
}

absl::Status RepositoryState::RebuildCatalog() {
  // What has vanished is known from the old rows alone.
  if (catalog_ != nullptr) {
    if (const absl::Status synced = SyncSnapshots(Listing::kAlways); !synced.ok()) {
      LogWarning("what the old catalog knew is lost", {{"error", synced.ToString()}});
    }
  }
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> pack_objects, objects->List(kPacksFolder));
  std::vector<PackName> names;
  std::vector<std::string> found;
  for (const ObjectInfo& object : pack_objects) {
    auto name = PackNameOf(object.name);
    if (!name.ok()) continue;
    names.push_back(*name);
    found.push_back(object.name);
  }
  if (!read_only) STILL_RETURN_IF_ERROR(objects->Settle(found));
  const std::vector<PackSummary> packs_read = ReadPacks(*this, names);
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> notes, objects->List(kCondemnedPrefix));
  absl::flat_hash_set<std::string> condemned;
  for (const ObjectInfo& note : notes) condemned.insert(note.name);
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> manifests, objects->List(kSnapshotsFolder));
  absl::flat_hash_set<std::string> known;
  const std::vector<manifest::Snapshot> snapshots = ReadManifests(*this, manifests, known);
  const std::vector<CatalogVanished> unreadable = KnownButNotWhole(*this, manifests, snapshots);
  auto fill = [&](CatalogTransaction& change) -> absl::Status {
    for (const CatalogVanished& one : unreadable) STILL_RETURN_IF_ERROR(change.PutVanished(one));
    for (const PackSummary& pack : packs_read) {
      CatalogPack row = ToRow(pack);
      const std::string note = CondemnedObject(pack.name);
      if (condemned.contains(note)) row.condemned = CondemnedSince(*this, note);
      STILL_RETURN_IF_ERROR(change.PutPack(row, ToNodeRows(pack)));
    }
    return PutSnapshotRows(change, snapshots, {});
  };
  // Its connections must be closed before a damaged file is replaced: the last one takes the log away by its name.
  catalog_.reset();
  STILL_ASSIGN_OR_RETURN(catalog_, Catalog::Rebuild(catalog_options(), fill));
  // What was stored meanwhile.
  return SyncCatalog();
}

}  // namespace still::store
