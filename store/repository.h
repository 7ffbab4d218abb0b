// Repository: the store of snapshots (docs/format/repository.md). What the rest of the project uses of store/.
//
//   STILL_ASSIGN_OR_RETURN(auto repository, Repository::Open({.path = "/srv/vm.still"}));
//   STILL_ASSIGN_OR_RETURN(auto snapshot, repository->BeginSnapshot());
//   STILL_ASSIGN_OR_RETURN(auto image,
//                          snapshot->BeginImage({.name = "vda", .role = manifest::Image::ROLE_DISK, .size = n}));
//   STILL_RETURN_IF_ERROR(image->Write(0, bytes));  // Any order; what is never written is zero.
//   STILL_RETURN_IF_ERROR(image->Finish());
//   STILL_ASSIGN_OR_RETURN(std::string id, snapshot->Commit(manifest));  // Now it is listed, whole and durable.
//
// Several processes may use one repository at the same time, in any mix of calls. All calls block. Thread-safe, except
// where a class says otherwise. Objects made by a Repository must not outlive it.
//
// Errors: NOT_FOUND, ALREADY_EXISTS (a snapshot's name); UNAUTHENTICATED (a passphrase is needed), PERMISSION_DENIED
// (the wrong one); FAILED_PRECONDITION (a newer format, no repository there); DATA_LOSS (stored bytes are damaged or
// missing: nothing of them is returned); RESOURCE_EXHAUSTED (the disk is full); UNAVAILABLE (another process holds a
// lock that excludes this; try later).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file_system.h"
#include "base/host_identity.h"
#include "base/status.h"
#include "proto/manifest.pb.h"
#include "store/block/compression.h"
#include "store/catalog/rows.h"
#include "store/crypto/key_ring.h"
#include "store/image/image_reader.h"
#include "store/image/image_writer.h"
#include "store/maintenance.h"

namespace still::store {

namespace manifest = ::stillpoint::manifest::v1;

struct Credentials {
  std::string passphrase;  // Used when not empty.
  std::string key_file;    // Path; used when not empty and there is no passphrase.
  bool empty() const { return passphrase.empty() && key_file.empty(); }
};

struct RepositoryOptions {
  std::string path;         // Of its directory.
  Credentials credentials;  // Empty: a repository without encryption; one with encryption then does not open.
  // Threads that hash, compress and decompress; 0: one for each CPU.
  int workers = 0;
  Compression compression = Compression::kDefault;  // For Init: of all that will be stored.
  KeyCost key_cost;                                 // Of keys that are made: what guessing a passphrase costs.
  // Empty: beside the objects, or with encryption in this host's cache (docs/format/catalog.md).
  std::string catalog_path;
  // Who commits, and whose machines references mean. Empty: everybody's, for programs that only read.
  HostIdentity here;
  // For Open: write the catalog anew from packs and manifests alone, also when it is too damaged to be opened.
  bool rebuild_catalog = false;
  // Seams for tests; must outlive the repository.
  FileSystem* file_system = nullptr;  // nullptr: the machine's. With another one, `path` must exist in it.
  Clock* clock = nullptr;
};

struct RepositoryStats {
  uint64_t snapshots = 0;
  uint64_t packs = 0;
  uint64_t condemned_packs = 0;
  uint64_t stored_bytes = 0;       // Everything: packs, manifests, catalog.
  uint64_t bookkeeping_bytes = 0;  // Of these, what is not blocks: footers, trees, manifests, catalog, frame headers.
  uint64_t unique_blocks = 0;
  uint64_t vanished_snapshots = 0;  // Repository::Vanished.
};

class SnapshotWriter {
 public:
  // Drops what was not committed. Packs that were already stored stay, for the next capture to find.
  virtual ~SnapshotWriter() = default;

  // Images may be written at the same time, by one thread each. INVALID_ARGUMENT for a bad or repeated name or a size
  // beyond 2^50. The writer must be finished or destroyed before Commit.
  virtual absl::StatusOr<std::unique_ptr<ImageWriter>> BeginImage(const ImageOptions& options) = 0;
  // Stores everything durably and lists it under snapshot.name (ALREADY_EXISTS when taken: give another name and
  // commit again). `id`, `images`, `sequence`, `committed_unix_ns` and `drain.bytes_stored` are filled in here, and the host unless it is given: an entry of
  // `images` with a finished image's name keeps its other fields. Gives the new snapshot's id.
  virtual absl::StatusOr<std::string> Commit(manifest::Snapshot snapshot) = 0;
  // Bytes handed to storage so far by this snapshot, after deduplication and compression. Any thread.
  virtual uint64_t bytes_stored() const = 0;
};

class Repository {
 public:
  // Makes a repository in `path`, which must be absent or empty (FAILED_PRECONDITION). Encrypted if there are
  // credentials. Until the last step of it there is no repository.
  static absl::Status Init(const RepositoryOptions& options);
  static absl::StatusOr<std::unique_ptr<Repository>> Open(const RepositoryOptions& options);
  virtual ~Repository() = default;

  virtual const std::string& id() const = 0;  // 32 hex digits.
  virtual bool encrypted() const = 0;
  virtual Compression compression() const = 0;

  virtual absl::StatusOr<std::unique_ptr<SnapshotWriter>> BeginSnapshot() = 0;

  // In the order of their commits, whatever the clocks said: the newest is the last.
  virtual absl::StatusOr<std::vector<manifest::Snapshot>> ListSnapshots() = 0;
  // Those of the sessions of this name, in the same order; reads no others.
  virtual absl::StatusOr<std::vector<manifest::Snapshot>> ListSnapshotsOf(absl::string_view session) = 0;
  // What is asked of all of them again and again: by session, within one in the order of commits. Read anew only when
  // something has changed; shared with whoever asked before.
  virtual absl::StatusOr<std::shared_ptr<const std::vector<SnapshotSummary>>> Summaries() = 0;
  // `reference`: a name or its beginning, an id or at least 4 digits of its beginning, "latest", SESSION@latest, or
  // SESSION@AGE: of that session the newest that is at least AGE old ("web@2d"; units s, m, h, d, w; the session's name
  // may be cut, too, or left out). The last three mean this host's (options.here); HOST/latest and HOST/SESSION@AGE those
  // of another one, by its name or the beginning of its id. NOT_FOUND suggests what is near, FAILED_PRECONDITION lists what it could be.
  virtual absl::StatusOr<manifest::Snapshot> FindSnapshot(absl::string_view reference) = 0;
  // `image`: its name in the snapshot.
  virtual absl::StatusOr<std::unique_ptr<ImageReader>> OpenImage(const manifest::Snapshot& snapshot,
                                                                 absl::string_view image) = 0;
  // Ranges in which image `image` of `b` differs from that of `a`, in order, whole blocks. Time goes with the
  // difference, not with the size.
  virtual absl::StatusOr<std::vector<ImageRange>> Diff(const manifest::Snapshot& a, const manifest::Snapshot& b,
                                                       absl::string_view image) = 0;

  // Reads nothing of images: use Verify to know that they are whole.
  virtual absl::StatusOr<RepositoryStats> Stats() = 0;
  virtual absl::StatusOr<VerifyReport> Verify(const VerifyOptions& options) = 0;
  // FAILED_PRECONDITION where a newer version wrote part of it: then nothing is touched.
  virtual absl::StatusOr<RepairReport> Repair(const RepairOptions& options) = 0;
  // What this host's catalog knew and is gone, by session. While there is any, Prune is refused (FAILED_PRECONDITION): the data
  // of these snapshots looks unused. Repair puts back what the catalog still has of them, Forget gives them up.
  virtual absl::StatusOr<std::vector<VanishedSnapshot>> Vanished() = 0;
  // Removes snapshots by id, also vanished ones: all, or none if there is an error that is found before. FAILED_PRECONDITION if
  // one is held (label "hold"). Space comes back with Prune.
  virtual absl::Status Forget(const std::vector<std::string>& ids) = 0;
  // Gives a snapshot the label "hold", with the reason as its value: nothing removes it until it is released. Both may
  // be repeated. NOT_FOUND.
  virtual absl::Status HoldSnapshot(const std::string& id, const std::string& reason) = 0;
  virtual absl::Status ReleaseSnapshot(const std::string& id) = 0;
  virtual absl::StatusOr<PruneReport> Prune(const PruneOptions& options) = 0;
  // Writes the catalog anew from packs and manifests alone.
  virtual absl::Status RebuildCatalog() = 0;

  // Passphrases and key files that open this repository; encrypted ones only (FAILED_PRECONDITION).
  virtual absl::StatusOr<std::vector<KeySlotInfo>> ListKeys() = 0;
  // Gives the key's id.
  virtual absl::StatusOr<std::string> AddKey(const Credentials& credentials, const std::string& label) = 0;
  // Adds one, then removes the other: a crash in between leaves both. Gives the new key's id.
  virtual absl::StatusOr<std::string> ChangeKey(absl::string_view key_id, const Credentials& credentials,
                                                const std::string& label) = 0;
  // The last one cannot be removed (FAILED_PRECONDITION).
  virtual absl::Status RemoveKey(absl::string_view key_id) = 0;
};

}  // namespace still::store
