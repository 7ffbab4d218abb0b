#include "store/catalog/catalog.h"

#include <stdio.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "store/catalog/schema.h"
#include "store/catalog/statements.h"
#include "store/sqlite/migrate.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

constexpr size_t kPackNameBytes = 16;

// Calls `visit` for each row.
template <typename Visit>
absl::Status ForEachRow(Statement& select, Visit visit) {
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return absl::OkStatus();
    visit();
  }
}

// The schema says how long a pack's name is; a damaged file may hold another one all the same.
absl::StatusOr<std::string> PackNameFrom(const Statement& row, const std::string& path) {
  std::string name = row.Bytes(0);
  if (name.size() == kPackNameBytes) return name;
  return absl::DataLossError(
      absl::StrCat("catalog ", path, ": the row of a pack is damaged; run `still repair catalog`"));
}

absl::StatusOr<CatalogPack> PackFrom(const Statement& row, const std::string& path) {
  STILL_ASSIGN_OR_RETURN(std::string name, PackNameFrom(row, path));
  CatalogPack pack{.name = std::move(name),
                   .kind = static_cast<int>(row.Int(1)),
                   .size = static_cast<uint64_t>(row.Int(2)),
                   .created_unix_ns = row.Int(3),
                   .blocks = static_cast<uint32_t>(row.Int(4)),
                   .nodes = static_cast<uint32_t>(row.Int(5)),
                   .overhead = static_cast<uint64_t>(row.Int(6)),
                   .condemned = row.TimeAt(7)};
  pack.hooks = row.Bytes(8);
  return pack;
}

CatalogImage ImageFrom(const Statement& row, int first_column) {
  return {.name = row.Bytes(first_column),
          .role = static_cast<int>(row.Int(first_column + 1)),
          .size = static_cast<uint64_t>(row.Int(first_column + 2)),
          .root = row.Bytes(first_column + 3),
          .bitmap = row.Bytes(first_column + 4)};
}

CatalogSnapshot SnapshotFrom(const Statement& row) {
  CatalogSnapshot snapshot{.id = row.Bytes(0),
                           .name = row.Bytes(1),
                           .session = row.Bytes(2),
                           .session_id = row.Bytes(3),
                           .point_unix_ns = row.Int(4),
                           .committed_unix_ns = row.Int(5),
                           .kind = static_cast<int>(row.Int(6))};
  snapshot.manifest = row.Bytes(7);
  snapshot.sequence = row.Int(8);
  snapshot.host_id = row.Bytes(9);
  snapshot.machine_id = row.Bytes(10);
  snapshot.host = row.Bytes(11);
  snapshot.level = static_cast<int>(row.Int(12));
  snapshot.logical_bytes = static_cast<uint64_t>(row.Int(13));
  return snapshot;
}

absl::Status FillLabelsAndImages(Database& db, CatalogSnapshot& snapshot) {
  STILL_ASSIGN_OR_RETURN(Statement labels, db.Prepare("SELECT key, value FROM label WHERE snapshot = ?"));
  STILL_RETURN_IF_ERROR(labels.Bind(absl::string_view(snapshot.id)));
  STILL_RETURN_IF_ERROR(ForEachRow(labels, [&] { snapshot.labels[labels.Bytes(0)] = labels.Bytes(1); }));
  STILL_ASSIGN_OR_RETURN(
      Statement images,
      db.Prepare("SELECT name, role, size, root, bitmap FROM image WHERE snapshot = ? ORDER BY name"));
  STILL_RETURN_IF_ERROR(images.Bind(absl::string_view(snapshot.id)));
  return ForEachRow(images, [&] { snapshot.images.push_back(ImageFrom(images, 0)); });
}

// Several selects that must see one state.
class ReadTransaction {
 public:
  static absl::StatusOr<ReadTransaction> Begin(Database& db) {
    STILL_RETURN_IF_ERROR(db.Execute("BEGIN"));
    return ReadTransaction(&db);
  }
  ReadTransaction(ReadTransaction&& other) noexcept : db_(std::exchange(other.db_, nullptr)) {}
  // Nothing was written: ending it can lose nothing.
  ~ReadTransaction() {
    if (db_ != nullptr) (void)db_->Execute("ROLLBACK");
  }

 private:
  explicit ReadTransaction(Database* db) : db_(db) {}
  Database* db_;
};

}  // namespace

Catalog::Catalog(std::string path, std::unique_ptr<Database> writer, std::unique_ptr<Database> reader)
    : path_(std::move(path)), writer_(std::move(writer)), reader_(std::move(reader)) {}

Catalog::~Catalog() = default;

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Open(const CatalogOptions& options) {
  STILL_ASSIGN_OR_RETURN(Database writer, Database::Open(options.path, kCatalogKind, options.busy_timeout));
  STILL_RETURN_IF_ERROR(Migrate(writer));
  STILL_ASSIGN_OR_RETURN(Database reader, Database::Open(options.path, kCatalogKind, options.busy_timeout));
  return std::unique_ptr<Catalog>(new Catalog(options.path, std::make_unique<Database>(std::move(writer)),
                                              std::make_unique<Database>(std::move(reader))));
}

absl::StatusOr<std::unique_ptr<Catalog>> Catalog::Rebuild(
    const CatalogOptions& options, const std::function<absl::Status(CatalogTransaction& change)>& fill) {
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = Open(options);
  absl::Status health = catalog.ok() ? (*catalog)->Check() : catalog.status();
  if (absl::IsDataLoss(health)) {
    LogWarning("damaged catalog set aside", {{"path", options.path}, {"error", health.ToString()}});
    catalog = absl::UnknownError("closed");
    STILL_RETURN_IF_ERROR(SetAside(options.path));
    catalog = Open(options);
  } else if (!health.ok()) {
    return health;
  }
  if (!catalog.ok()) return catalog.status();
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, (*catalog)->Begin());
  STILL_RETURN_IF_ERROR(change.Clear());
  STILL_RETURN_IF_ERROR(fill(change));
  STILL_RETURN_IF_ERROR(change.Commit());
  return catalog;
}

absl::Status Catalog::SetAside(const std::string& path) {
  // The log first: replayed into the new file it would destroy it.
  for (const char* suffix : {"-wal", "-shm"}) STILL_RETURN_IF_ERROR(RemoveFile(absl::StrCat(path, suffix)));
  const std::string aside = absl::StrCat(path, ".damaged");
  if (::rename(path.c_str(), aside.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("rename ", path, " to ", aside));
  }
  return absl::OkStatus();
}

absl::StatusOr<CatalogTransaction> Catalog::Begin() {
  writing_.Lock();
  absl::Status status = writer_->CheckNotReplaced();
  if (status.ok()) status = writer_->Execute("BEGIN IMMEDIATE");
  if (status.ok()) return CatalogTransaction(this);
  writing_.Unlock();
  return status;
}

absl::Status Catalog::ForEachPack(bool with_hooks, const std::function<void(const CatalogPack& pack)>& visit) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT name, kind, size, created, blocks, nodes, overhead, condemned, iif(?, hooks, x'') "
                       "FROM pack ORDER BY created, name"));
  STILL_RETURN_IF_ERROR(select.Bind(int64_t{with_hooks}));
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return absl::OkStatus();
    STILL_ASSIGN_OR_RETURN(CatalogPack pack, PackFrom(select, path_));
    visit(pack);
  }
}

absl::StatusOr<std::optional<CatalogPack>> Catalog::FindPack(absl::string_view name) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT name, kind, size, created, blocks, nodes, overhead, condemned, hooks FROM pack "
                       "WHERE name = ?"));
  STILL_RETURN_IF_ERROR(select.Bind(Blob(name)));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return std::nullopt;
  return PackFrom(select, path_);
}

absl::StatusOr<std::vector<NodePlace>> Catalog::FindNode(absl::string_view id) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT pack.name, node.ordinal FROM node JOIN pack ON pack.number = node.pack "
                       "WHERE node.id = ? ORDER BY pack.created DESC, pack.name DESC"));
  STILL_RETURN_IF_ERROR(select.Bind(Blob(id)));
  std::vector<NodePlace> places;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return places;
    STILL_ASSIGN_OR_RETURN(std::string pack, PackNameFrom(select, path_));
    places.push_back({.pack = std::move(pack), .ordinal = static_cast<uint32_t>(select.Int(1))});
  }
}

absl::StatusOr<std::vector<CatalogSnapshot>> Catalog::ListSnapshots() {
  return ListSnapshots("SELECT " STILL_SNAPSHOT_COLUMNS " FROM snapshot ORDER BY sequence, committed, id", "");
}

absl::StatusOr<std::vector<CatalogSnapshot>> Catalog::ListSnapshotsOf(absl::string_view session) {
  return ListSnapshots(kSnapshotsOfSession, session);
}

// `session`: for the statement, if it has a place for it.
absl::StatusOr<std::vector<CatalogSnapshot>> Catalog::ListSnapshots(const char* sql, absl::string_view session) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(ReadTransaction transaction, ReadTransaction::Begin(*reader_));
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare(sql));
  if (!session.empty()) STILL_RETURN_IF_ERROR(select.Bind(session));
  std::vector<CatalogSnapshot> snapshots;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] { snapshots.push_back(SnapshotFrom(select)); }));
  for (CatalogSnapshot& snapshot : snapshots) STILL_RETURN_IF_ERROR(FillLabelsAndImages(*reader_, snapshot));
  return snapshots;
}

absl::StatusOr<std::vector<SnapshotSummary>> Catalog::ListSummaries() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare(kSummaries));
  std::vector<SnapshotSummary> summaries;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] {
    summaries.push_back({.id = select.Bytes(0),
                         .name = select.Bytes(1),
                         .session = select.Bytes(2),
                         .session_id = select.Bytes(3),
                         .host_id = select.Bytes(4),
                         .host = select.Bytes(5),
                         .machine_id = select.Bytes(6),
                         .sequence = select.Int(7),
                         .committed_unix_ns = select.Int(8),
                         .point_unix_ns = select.Int(9),
                         .level = static_cast<int>(select.Int(10)),
                         .logical_bytes = static_cast<uint64_t>(select.Int(11))});
  }));
  return summaries;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Catalog::ListSnapshotNames() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare(kSnapshotNames));
  std::vector<std::pair<std::string, std::string>> names;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] { names.emplace_back(select.Bytes(0), select.Bytes(1)); }));
  return names;
}

absl::StatusOr<int64_t> Catalog::Version() {
  absl::MutexLock lock(&reading_);
  return reader_->QueryInt("PRAGMA data_version");
}

absl::StatusOr<CatalogListing> Catalog::FindListing(absl::string_view folder) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare("SELECT stamp, changes FROM listing WHERE folder = ?"));
  STILL_RETURN_IF_ERROR(select.Bind(folder));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return CatalogListing();
  return CatalogListing{.stamp = select.Bytes(0), .changes = select.Int(1)};
}

absl::Status Catalog::RememberListing(absl::string_view folder, const CatalogListing& listing) {
  STILL_RETURN_IF_ERROR(CheckNotReplaced());
  // A connection of its own, which waits for nobody.
  STILL_ASSIGN_OR_RETURN(Database db, Database::Open(path_, kCatalogKind, absl::ZeroDuration()));
  STILL_ASSIGN_OR_RETURN(Statement update, db.Prepare("UPDATE listing SET stamp = ? WHERE folder = ? AND changes = ?"));
  STILL_RETURN_IF_ERROR(update.Bind(Blob(listing.stamp), folder, listing.changes));
  return update.Run();
}

absl::StatusOr<int64_t> Catalog::NewestSequence() {
  absl::MutexLock lock(&reading_);
  return reader_->QueryInt("SELECT ifnull(max(sequence), 0) FROM snapshot");
}

absl::StatusOr<std::vector<CatalogSnapshot>> Catalog::ListUnsequenced() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         reader_->Prepare("SELECT " STILL_SNAPSHOT_COLUMNS
                                          " FROM snapshot WHERE sequence IS NULL ORDER BY committed, id"));
  std::vector<CatalogSnapshot> snapshots;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] { snapshots.push_back(SnapshotFrom(select)); }));
  return snapshots;
}

absl::StatusOr<std::optional<CatalogSnapshot>> Catalog::FindOneSnapshot(const char* sql, absl::string_view key) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(ReadTransaction transaction, ReadTransaction::Begin(*reader_));
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare(sql));
  STILL_RETURN_IF_ERROR(select.Bind(key));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return std::nullopt;
  CatalogSnapshot snapshot = SnapshotFrom(select);
  STILL_RETURN_IF_ERROR(FillLabelsAndImages(*reader_, snapshot));
  return snapshot;
}

absl::StatusOr<std::optional<CatalogSnapshot>> Catalog::FindSnapshot(absl::string_view id) {
  return FindOneSnapshot("SELECT " STILL_SNAPSHOT_COLUMNS " FROM snapshot WHERE id = ?", id);
}

absl::StatusOr<std::optional<CatalogSnapshot>> Catalog::FindSnapshotByName(absl::string_view name) {
  return FindOneSnapshot("SELECT " STILL_SNAPSHOT_COLUMNS " FROM snapshot WHERE name = ?", name);
}

absl::StatusOr<std::vector<CatalogVanished>> Catalog::ListVanished() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT id, name, session, host, noticed, manifest FROM vanished ORDER BY session, name, id"));
  std::vector<CatalogVanished> vanished;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] {
    vanished.push_back({.id = select.Bytes(0),
                        .name = select.Bytes(1),
                        .session = select.Bytes(2),
                        .host = select.Bytes(3),
                        .noticed = absl::FromUnixNanos(select.Int(4)),
                        .manifest = select.Bytes(5)});
  }));
  return vanished;
}

absl::StatusOr<bool> Catalog::AsksForNotes() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(const int64_t asks,
                         reader_->QueryInt("SELECT changes FROM listing WHERE folder = 'forgotten/'"));
  return asks != 0;
}

absl::StatusOr<std::vector<CatalogSighting>> Catalog::ListSightings() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         reader_->Prepare("SELECT lease, content, boot, since FROM sighting ORDER BY lease"));
  std::vector<CatalogSighting> sightings;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] {
    sightings.push_back({.lease = select.Bytes(0),
                         .content = select.Bytes(1),
                         .boot = select.Bytes(2),
                         .since = absl::Nanoseconds(select.Int(3))});
  }));
  return sightings;
}

absl::StatusOr<std::vector<CatalogSession>> Catalog::ListSessions() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT name, id, snapshots, first_point, last_point FROM session ORDER BY name, id"));
  std::vector<CatalogSession> sessions;
  STILL_RETURN_IF_ERROR(ForEachRow(select, [&] {
    sessions.push_back({.name = select.Bytes(0),
                        .id = select.Bytes(1),
                        .snapshots = static_cast<uint64_t>(select.Int(2)),
                        .first_point_unix_ns = select.Int(3),
                        .last_point_unix_ns = select.Int(4)});
  }));
  return sessions;
}

absl::StatusOr<std::optional<CatalogBase>> Catalog::FindBase(absl::string_view session_id, absl::string_view image) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT snapshot.id, image.name, role, size, root, bitmap FROM snapshot "
                       "JOIN image ON image.snapshot = snapshot.id WHERE session_id = ? AND image.name = ? "
                       "ORDER BY sequence DESC, committed DESC, snapshot.id DESC LIMIT 1"));
  STILL_RETURN_IF_ERROR(select.Bind(session_id, image));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return std::nullopt;
  return CatalogBase{.snapshot_id = select.Bytes(0), .image = ImageFrom(select, 1)};
}

absl::Status Catalog::CheckNotReplaced() const { return writer_->CheckNotReplaced(); }

absl::Status Catalog::Check() {
  absl::MutexLock lock(&reading_);
  return reader_->CheckIntegrity();
}

absl::StatusOr<uint64_t> Catalog::FileBytes() const {
  STILL_ASSIGN_OR_RETURN(uint64_t bytes, FileSize(path_));
  // There is none between the last close and the next change.
  absl::StatusOr<uint64_t> log_bytes = FileSize(absl::StrCat(path_, "-wal"));
  return bytes + (log_bytes.ok() ? *log_bytes : 0);
}

}  // namespace still::store
