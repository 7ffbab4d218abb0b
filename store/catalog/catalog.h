// Catalog: the SQLite index of a repository. It speeds everything up and is never the only place of anything: all that
// it says can be rebuilt from packs and manifests (docs/format/catalog.md), so that it may be deleted at any moment.
//
//   STILL_ASSIGN_OR_RETURN(std::unique_ptr<Catalog> catalog, Catalog::Open({.path = "/srv/vm.still/catalog.db"}));
//   STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog->Begin());
//   STILL_RETURN_IF_ERROR(change.PutSnapshot(row));     // ALREADY_EXISTS: the name is taken
//   STILL_RETURN_IF_ERROR(objects.Put(...manifest...)); // nobody else can take the name meanwhile
//   STILL_RETURN_IF_ERROR(change.Commit());             // durable when it returns
//
// Several processes may use one catalog. All calls block, for at most the busy timeout while another process writes;
// then UNAVAILABLE. DATA_LOSS: the file is damaged, and the message names the command that mends it.
// FAILED_PRECONDITION: it was written by a newer version. RESOURCE_EXHAUSTED: the disk is full.
//
// Catalog is thread-safe. Its reads see what was committed, also in a thread that holds a transaction open.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/catalog/rows.h"

namespace still::store {

class Catalog;
class Database;

// One change of the catalog, done by Commit() or not at all. Holds off every other writer, of all processes: keep it
// short. For one thread; must not outlive its catalog. After an error only destroy it.
class CatalogTransaction {
 public:
  CatalogTransaction(CatalogTransaction&& other) noexcept;
  CatalogTransaction& operator=(CatalogTransaction&&) = delete;
  CatalogTransaction(const CatalogTransaction&) = delete;
  ~CatalogTransaction();  // Undoes what was not committed.

  // With its nodes. ALREADY_EXISTS.
  absl::Status PutPack(const CatalogPack& pack, absl::Span<const CatalogNode> nodes);
  // nullopt: it is in use again. NOT_FOUND.
  absl::Status SetCondemned(absl::string_view pack, std::optional<absl::Time> when);
  // With its nodes. OK when there is none.
  absl::Status RemovePack(absl::string_view pack);
  // ALREADY_EXISTS when the id or the name (unless empty) is taken.
  absl::Status PutSnapshot(const CatalogSnapshot& snapshot);
  absl::Status RemoveSnapshot(absl::string_view id);
  // Sequence, host, machine, level and size of a row that has none.
  absl::Status SetSequence(const CatalogSnapshot& snapshot);
  // The snapshot's row becomes one of what has vanished. OK when there is none.
  absl::Status SetVanished(absl::string_view id, absl::Time noticed);
  // One more of them. OK when it is there.
  absl::Status PutVanished(const CatalogVanished& vanished);
  // It is there again, or was forgotten. OK when there is none.
  absl::Status RemoveVanished(absl::string_view id);
  // From now on what is gone without a note has vanished (Catalog::AsksForNotes).
  absl::Status AskForNotes();
  // Replaces all there were.
  absl::Status PutSightings(absl::Span<const CatalogSighting> sightings);
  // All packs, nodes and snapshots.
  absl::Status Clear();

  // FAILED_PRECONDITION when the file was replaced by a rebuild meanwhile: open the catalog again.
  absl::Status Commit();

 private:
  friend class Catalog;
  explicit CatalogTransaction(Catalog* catalog) : catalog_(catalog) {}
  Catalog* catalog_;  // nullptr: moved from.
  bool open_ = true;
};

struct CatalogOptions {
  std::string path;
  absl::Duration busy_timeout = absl::Seconds(30);
};

class Catalog {
 public:
  // Makes the file if there is none, and brings an older one up to date.
  static absl::StatusOr<std::unique_ptr<Catalog>> Open(const CatalogOptions& options);
  // Replaces everything with what `fill` puts, in one transaction. A file that is damaged is set aside first as
  // PATH.damaged, replacing an earlier one: the caller holds the repository's exclusive lock, or nobody else has the
  // catalog open.
  static absl::StatusOr<std::unique_ptr<Catalog>> Rebuild(
      const CatalogOptions& options, const std::function<absl::Status(CatalogTransaction& change)>& fill);
  ~Catalog();

  // Blocks while another thread's transaction is open.
  absl::StatusOr<CatalogTransaction> Begin();

  // In order of (created, name). `with_hooks`: else they are left empty.
  absl::Status ForEachPack(bool with_hooks, const std::function<void(const CatalogPack& pack)>& visit);
  absl::StatusOr<std::optional<CatalogPack>> FindPack(absl::string_view name);
  // Where the node is stored, the pack with the largest (created, name) first; empty: nowhere. Condemned ones too.
  absl::StatusOr<std::vector<NodePlace>> FindNode(absl::string_view id);

  // In the order of their commits, the first one first: by sequence, whatever the clocks said.
  absl::StatusOr<std::vector<CatalogSnapshot>> ListSnapshots();
  // Those of the sessions of this name, in the same order.
  absl::StatusOr<std::vector<CatalogSnapshot>> ListSnapshotsOf(absl::string_view session);
  // Of all, by session; within one in the order of their commits. Reads no manifest.
  absl::StatusOr<std::vector<SnapshotSummary>> ListSummaries();
  // The id and the name of each.
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ListSnapshotNames();
  // Differs when something was committed since it was asked last, by whomever.
  absl::StatusOr<int64_t> Version();
  // `folder`: "packs/" or "snapshots/". Look at it before anything that is to be remembered is read.
  absl::StatusOr<CatalogListing> FindListing(absl::string_view folder);
  // That all rows are as they were listed under this stamp. Has no effect when some have come or gone since `listing` was
  // found. UNAVAILABLE at once while somebody writes: it only makes the next open faster.
  absl::Status RememberListing(absl::string_view folder, const CatalogListing& listing);
  // Of the last commit; 0: there is none.
  absl::StatusOr<int64_t> NewestSequence();
  // Those of before version 5 of the schema whose newer columns nobody has read from the manifest yet.
  absl::StatusOr<std::vector<CatalogSnapshot>> ListUnsequenced();
  absl::StatusOr<std::optional<CatalogSnapshot>> FindSnapshot(absl::string_view id);
  absl::StatusOr<std::optional<CatalogSnapshot>> FindSnapshotByName(absl::string_view name);
  // By session, name and id.
  absl::StatusOr<std::vector<CatalogVanished>> ListVanished();
  // False until a version that writes notes of forgetting has listed all snapshots.
  absl::StatusOr<bool> AsksForNotes();
  absl::StatusOr<std::vector<CatalogSighting>> ListSightings();
  // By name, then id.
  absl::StatusOr<std::vector<CatalogSession>> ListSessions();
  // Of the newest snapshot of this session that has the image.
  absl::StatusOr<std::optional<CatalogBase>> FindBase(absl::string_view session_id, absl::string_view image);

  // OK, or DATA_LOSS with what SQLite finds wrong. Reads the whole file.
  absl::Status Check();
  // FAILED_PRECONDITION when the file was deleted or replaced: what is read here is old. Open it again.
  absl::Status CheckNotReplaced() const;
  // Size of the file with its log, in bytes.
  absl::StatusOr<uint64_t> FileBytes() const;

 private:
  friend class CatalogTransaction;
  Catalog(std::string path, std::unique_ptr<Database> writer, std::unique_ptr<Database> reader);
  static absl::Status SetAside(const std::string& path);
  absl::StatusOr<std::vector<CatalogSnapshot>> ListSnapshots(const char* sql, absl::string_view session);
  absl::StatusOr<std::optional<CatalogSnapshot>> FindOneSnapshot(const char* sql, absl::string_view key);

  const std::string path_;
  absl::Mutex writing_;  // Held while a transaction is open; its owner may be moved, so no scope shows it.
  std::unique_ptr<Database> writer_;
  absl::Mutex reading_;
  std::unique_ptr<Database> reader_ ABSL_GUARDED_BY(reading_);
};

// Where the catalog of a repository lies. Without encryption beside the objects, for all who use them; with it in a
// private cache of this host, because whoever has the storage may neither read nor forge it: $STILL_CACHE_DIR; else for
// root /var/cache/stillpoint, for others $XDG_CACHE_HOME/stillpoint, else .cache/stillpoint in the home directory ($HOME,
// or what the user database says). `repository_id`: 32 hex digits. FAILED_PRECONDITION when there is no home directory.
// Makes the directory.
absl::StatusOr<std::string> CatalogPath(absl::string_view repository_path, absl::string_view repository_id,
                                        bool encrypted);
// Where an older version may have had it: those that exist, among them the one above.
std::vector<std::string> KnownCatalogs(absl::string_view repository_path, absl::string_view repository_id,
                                       bool encrypted);

}  // namespace still::store
