// CatalogTransaction: the changes that are committed together.
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "store/catalog/catalog.h"
#include "store/sqlite/sqlite.h"

namespace still::store {

CatalogTransaction::CatalogTransaction(CatalogTransaction&& other) noexcept
    : catalog_(std::exchange(other.catalog_, nullptr)), open_(other.open_) {}

CatalogTransaction::~CatalogTransaction() {
  if (catalog_ == nullptr) return;
  if (open_) {
    // SQLite has undone it by itself after some errors, and then has nothing to undo.
    (void)catalog_->writer_->Execute("ROLLBACK");
  }
  catalog_->writing_.Unlock();
}

absl::Status CatalogTransaction::PutPack(const CatalogPack& pack, absl::Span<const CatalogNode> nodes) {
  Database& db = *catalog_->writer_;
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      db.Prepare("INSERT INTO pack (name, kind, size, created, blocks, nodes, overhead, hooks, condemned) "
                 "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  STILL_RETURN_IF_ERROR(insert.Bind(Blob(pack.name), int64_t{pack.kind}, static_cast<int64_t>(pack.size),
                                    pack.created_unix_ns, int64_t{pack.blocks}, int64_t{pack.nodes},
                                    static_cast<int64_t>(pack.overhead), Blob(pack.hooks), pack.condemned));
  STILL_RETURN_IF_ERROR(insert.Run());
  const int64_t number = db.last_insert_id();
  STILL_ASSIGN_OR_RETURN(Statement insert_node, db.Prepare("INSERT INTO node (id, pack, ordinal) VALUES (?, ?, ?)"));
  for (const CatalogNode& node : nodes) {
    STILL_RETURN_IF_ERROR(insert_node.Bind(Blob(node.id), number, int64_t{node.ordinal}));
    STILL_RETURN_IF_ERROR(insert_node.RunAndReset());
  }
  return absl::OkStatus();
}

absl::Status CatalogTransaction::SetCondemned(absl::string_view pack, std::optional<absl::Time> when) {
  STILL_ASSIGN_OR_RETURN(Statement update, catalog_->writer_->Prepare("UPDATE pack SET condemned = ? WHERE name = ?"));
  STILL_RETURN_IF_ERROR(update.Bind(when, Blob(pack)));
  STILL_RETURN_IF_ERROR(update.Run());
  if (catalog_->writer_->changes() == 0) return absl::NotFoundError("condemn pack: the catalog does not know it");
  return absl::OkStatus();
}

absl::Status CatalogTransaction::RemovePack(absl::string_view pack) {
  STILL_ASSIGN_OR_RETURN(Statement remove, catalog_->writer_->Prepare("DELETE FROM pack WHERE name = ?"));
  STILL_RETURN_IF_ERROR(remove.Bind(Blob(pack)));
  return remove.Run();
}

absl::Status CatalogTransaction::PutSnapshot(const CatalogSnapshot& snapshot) {
  Database& db = *catalog_->writer_;
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      db.Prepare("INSERT INTO snapshot (id, name, session, session_id, point, committed, kind, manifest, sequence, "
                 "host_id, machine_id, host, level, logical) "
                 "VALUES (?, nullif(?, ''), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  STILL_RETURN_IF_ERROR(insert.Bind(absl::string_view(snapshot.id), absl::string_view(snapshot.name),
                                    absl::string_view(snapshot.session), absl::string_view(snapshot.session_id),
                                    snapshot.point_unix_ns, snapshot.committed_unix_ns, int64_t{snapshot.kind},
                                    Blob(snapshot.manifest), snapshot.sequence, absl::string_view(snapshot.host_id),
                                    absl::string_view(snapshot.machine_id), absl::string_view(snapshot.host),
                                    int64_t{snapshot.level}, static_cast<int64_t>(snapshot.logical_bytes)));
  absl::Status status = insert.Run();
  if (absl::IsAlreadyExists(status)) {
    return absl::AlreadyExistsError(
        absl::StrCat("snapshot \"", snapshot.name, "\" exists already (", snapshot.id, ")"));
  }
  STILL_RETURN_IF_ERROR(status);
  STILL_ASSIGN_OR_RETURN(Statement insert_label,
                         db.Prepare("INSERT INTO label (snapshot, key, value) VALUES (?, ?, ?)"));
  for (const auto& [key, value] : snapshot.labels) {
    STILL_RETURN_IF_ERROR(
        insert_label.Bind(absl::string_view(snapshot.id), absl::string_view(key), absl::string_view(value)));
    STILL_RETURN_IF_ERROR(insert_label.RunAndReset());
  }
  STILL_ASSIGN_OR_RETURN(
      Statement insert_image,
      db.Prepare("INSERT INTO image (snapshot, name, role, size, root, bitmap) VALUES (?, ?, ?, ?, ?, ?)"));
  for (const CatalogImage& image : snapshot.images) {
    STILL_RETURN_IF_ERROR(insert_image.Bind(absl::string_view(snapshot.id), absl::string_view(image.name),
                                            int64_t{image.role}, static_cast<int64_t>(image.size), Blob(image.root),
                                            absl::string_view(image.bitmap)));
    STILL_RETURN_IF_ERROR(insert_image.RunAndReset());
  }
  return absl::OkStatus();
}

absl::Status CatalogTransaction::RemoveSnapshot(absl::string_view id) {
  STILL_ASSIGN_OR_RETURN(Statement remove, catalog_->writer_->Prepare("DELETE FROM snapshot WHERE id = ?"));
  STILL_RETURN_IF_ERROR(remove.Bind(id));
  return remove.Run();
}

absl::Status CatalogTransaction::SetSequence(const CatalogSnapshot& snapshot) {
  STILL_ASSIGN_OR_RETURN(
      Statement update,
      catalog_->writer_->Prepare("UPDATE snapshot SET sequence = ?, host_id = ?, machine_id = ?, host = ?, level = ?, "
                                 "logical = ? WHERE id = ?"));
  STILL_RETURN_IF_ERROR(update.Bind(snapshot.sequence, absl::string_view(snapshot.host_id),
                                    absl::string_view(snapshot.machine_id), absl::string_view(snapshot.host),
                                    int64_t{snapshot.level}, static_cast<int64_t>(snapshot.logical_bytes),
                                    absl::string_view(snapshot.id)));
  return update.Run();
}

absl::Status CatalogTransaction::SetVanished(absl::string_view id, absl::Time noticed) {
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      catalog_->writer_->Prepare("INSERT OR IGNORE INTO vanished (id, name, session, host, noticed, manifest) "
                                 "SELECT id, ifnull(name, ''), session, host, ?, manifest FROM snapshot WHERE id = ?"));
  STILL_RETURN_IF_ERROR(insert.Bind(std::optional<absl::Time>(noticed), id));
  STILL_RETURN_IF_ERROR(insert.Run());
  return RemoveSnapshot(id);
}

absl::Status CatalogTransaction::PutVanished(const CatalogVanished& vanished) {
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      catalog_->writer_->Prepare("INSERT OR IGNORE INTO vanished (id, name, session, host, noticed, manifest) "
                                 "VALUES (?, ?, ?, ?, ?, ?)"));
  STILL_RETURN_IF_ERROR(insert.Bind(absl::string_view(vanished.id), absl::string_view(vanished.name),
                                    absl::string_view(vanished.session), absl::string_view(vanished.host),
                                    std::optional<absl::Time>(vanished.noticed), Blob(vanished.manifest)));
  return insert.Run();
}

absl::Status CatalogTransaction::RemoveVanished(absl::string_view id) {
  STILL_ASSIGN_OR_RETURN(Statement remove, catalog_->writer_->Prepare("DELETE FROM vanished WHERE id = ?"));
  STILL_RETURN_IF_ERROR(remove.Bind(id));
  return remove.Run();
}

absl::Status CatalogTransaction::AskForNotes() {
  return catalog_->writer_->Execute("UPDATE listing SET changes = 1 WHERE folder = 'forgotten/'");
}

absl::Status CatalogTransaction::PutSightings(absl::Span<const CatalogSighting> sightings) {
  STILL_RETURN_IF_ERROR(catalog_->writer_->Execute("DELETE FROM sighting"));
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      catalog_->writer_->Prepare("INSERT INTO sighting (lease, content, boot, since) VALUES (?, ?, ?, ?)"));
  for (const CatalogSighting& sighting : sightings) {
    STILL_RETURN_IF_ERROR(insert.Bind(absl::string_view(sighting.lease), Blob(sighting.content),
                                      absl::string_view(sighting.boot), absl::ToInt64Nanoseconds(sighting.since)));
    STILL_RETURN_IF_ERROR(insert.RunAndReset());
  }
  return absl::OkStatus();
}

absl::Status CatalogTransaction::Clear() {
  return catalog_->writer_->Execute(
      "DELETE FROM node; DELETE FROM pack; DELETE FROM snapshot; "
      "UPDATE listing SET stamp = x'', changes = changes + 1");
}

absl::Status CatalogTransaction::Commit() {
  STILL_CHECK(open_);
  STILL_RETURN_IF_ERROR(catalog_->CheckNotReplaced());
  STILL_RETURN_IF_ERROR(catalog_->writer_->Execute("COMMIT"));
  open_ = false;
  return absl::OkStatus();
}

}  // namespace still::store
