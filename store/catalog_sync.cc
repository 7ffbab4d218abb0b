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
#include "store/block/bytes.h"
#include "store/repository_state.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

constexpr uint64_t kMaxNoteObject = 4096;

// A damaged note counts as written now, which only makes its pack wait longer.
absl::Time CondemnedSince(const RepositoryState& state, const std::string& name) {
  auto object = state.objects->Get(name, kMaxNoteObject);
  if (!object.ok()) return state.clock.Now();
  auto payload = FrameCodec().Decode(FrameKind::kCondemned, {.keys = state.sealing_keys(), .object = name}, *object);
  if (!payload.ok() || payload->size() != sizeof(int64_t)) return state.clock.Now();
  return absl::FromUnixNanos(LoadInt<int64_t>(payload->data()));
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

absl::Status PutSnapshotRow(CatalogTransaction& change, Catalog& catalog, const manifest::Snapshot& snapshot) {
  CatalogSnapshot row = ToRow(snapshot);
  if (!row.name.empty()) {
    STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> other, catalog.FindSnapshotByName(row.name));
    if (other) {
      // Only when somebody copied manifests about. It stays reachable by its id.
      LogWarning("two snapshots of one name", {{"name", row.name}, {"id", row.id}});
      row.name.clear();
    }
  }
  return change.PutSnapshot(row);
}

}  // namespace

CatalogOptions RepositoryState::catalog_options() const { return {.path = catalog_path_}; }

absl::Status RepositoryState::OpenCatalog(const std::string& catalog_path) {
  catalog_path_ = catalog_path;
  if (catalog_path_.empty()) {
    STILL_ASSIGN_OR_RETURN(catalog_path_, CatalogPath(path, config.hex_id(), config.encrypted));
  }
  STILL_ASSIGN_OR_RETURN(catalog_, Catalog::Open(catalog_options()));
  return SyncCatalog();
}

absl::Status RepositoryState::SyncCatalog() {
  STILL_RETURN_IF_ERROR(SyncPacks());
  STILL_RETURN_IF_ERROR(SyncCondemned());
  return SyncSnapshots();
}

absl::Status RepositoryState::SyncPacks() {
  absl::flat_hash_set<PackName> gone;
  STILL_RETURN_IF_ERROR(catalog_->ForEachPack(false, [&](const CatalogPack& row) { gone.insert(NameOf(row)); }));
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects_there, objects->List("packs/"));
  std::vector<PackName> unknown;
  for (const ObjectInfo& object : objects_there) {
    auto name = PackNameOf(object.name);
    if (name.ok() && gone.erase(*name) == 0) unknown.push_back(*name);
  }
  if (unknown.empty() && gone.empty()) return absl::OkStatus();
  // From here on new snapshots may use them, and whoever published them may have died before they were durable.
  std::vector<std::string> found;
  for (const PackName& name : unknown) found.push_back(PackObject(name));
  STILL_RETURN_IF_ERROR(objects->Settle(found));
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
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> notes, objects->List("condemned/"));
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

absl::Status RepositoryState::SyncSnapshots() {
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogSnapshot> rows, catalog_->ListSnapshots());
  absl::flat_hash_set<std::string> gone;
  for (const CatalogSnapshot& row : rows) gone.insert(row.id);
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects_there, objects->List("snapshots/"));
  std::vector<manifest::Snapshot> unknown;
  for (const ObjectInfo& object : objects_there) {
    absl::string_view id = object.name;
    if (!absl::ConsumePrefix(&id, "snapshots/") || gone.erase(id) != 0) continue;
    auto snapshot = ReadManifest(*this, id);
    if (snapshot.ok()) {
      unknown.push_back(*std::move(snapshot));
    } else if (!absl::IsNotFound(snapshot.status())) {
      LogWarning("manifest not readable", {{"error", snapshot.status().ToString()}});
    }
  }
  if (unknown.empty() && gone.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog_->Begin());
  for (const std::string& id : gone) STILL_RETURN_IF_ERROR(change.RemoveSnapshot(id));
  for (const manifest::Snapshot& snapshot : unknown) {
    STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> known, catalog_->FindSnapshot(snapshot.id()));
    if (!known) STILL_RETURN_IF_ERROR(PutSnapshotRow(change, *catalog_, snapshot));
  }
  return change.Commit();
}

absl::Status RepositoryState::RebuildCatalog() {
  catalog_.reset();
  STILL_ASSIGN_OR_RETURN(catalog_,
                         Catalog::Rebuild(catalog_options(), [](CatalogTransaction&) { return absl::OkStatus(); }));
  return SyncCatalog();
}

}  // namespace still::store
