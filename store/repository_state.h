// RepositoryState: the open parts of a repository, for the folders that work on all of it (snapshots, gc/, verify/).
//
// Parts are made in the order of the members; each may use those above it. Thread-safe as its parts are.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/host_identity.h"
#include "base/status.h"
#include "proto/manifest.pb.h"
#include "store/block/worker_pool.h"
#include "store/catalog/catalog.h"
#include "store/config.h"
#include "store/image/tree_reader.h"
#include "store/lock/lease.h"
#include "store/object/object_store.h"
#include "store/pack/frame_cache.h"
#include "store/pack/pack_set.h"
#include "store/pack/pack_writer.h"

namespace still::store {

class RepositoryState final : public NodeFinder {
 public:
  RepositoryState(std::string path, Clock& clock, std::unique_ptr<ObjectStore> objects, RepositoryConfig config,
                  std::optional<RepositoryKeys> keys, int workers);

  const std::string path;
  HostIdentity here;  // Who commits, and whose references are meant. Set before it is used.
  // Why nothing can be written to it by this process (errno), found out when it was opened.
  std::optional<int> read_only;
  Clock& clock;
  const std::unique_ptr<ObjectStore> objects;
  const RepositoryConfig config;
  const std::optional<RepositoryKeys> keys;  // With encryption.
  const SecretBytes plain_hash_key;          // Without.
  WorkerPool pool;
  PackSet packs;
  FrameCache frames;
  NodeStore nodes;

  const RepositoryKeys* sealing_keys() const { return keys ? &*keys : nullptr; }
  Catalog& catalog() { return *catalog_; }
  bool has_catalog() const { return catalog_ != nullptr; }  // False only while it is rebuilt.

  // Opens the catalog and brings it up to what is stored: what is there but not known is read, what is known but not
  // there is dropped. `catalog_path`: empty for the usual one.
  absl::Status OpenCatalog(const std::string& catalog_path);
  // Lists all objects.
  absl::Status SyncCatalog() { return SyncCatalog(Listing::kAlways); }
  // Replaces the catalog by what packs and manifests say. Also opens it: it may be damaged so that OpenCatalog() fails.
  // After an error only destroy the state.
  absl::Status RebuildCatalog();
  absl::Status RebuildCatalog(const std::string& catalog_path);

  absl::StatusOr<std::vector<NodeAddress>> FindNode(const NodeId& id) override;

  // Leases (docs/format/locks.md). Shared: for all of this process together, as long as anybody here holds it.
  // UNAVAILABLE while somebody holds one that excludes it.
  absl::StatusOr<std::shared_ptr<Lease>> HoldShared(const std::string& purpose) ABSL_LOCKS_EXCLUDED(lease_mutex_);
  // For what only reads: where no lease can be put it goes on without one, and gives nullptr.
  absl::StatusOr<std::shared_ptr<Lease>> HoldToRead(const std::string& purpose) ABSL_LOCKS_EXCLUDED(lease_mutex_);
  // PERMISSION_DENIED, with what can be done instead, where nothing can be written.
  absl::Status CheckWritable() const;
  absl::StatusOr<std::shared_ptr<Lease>> HoldExclusive(const std::string& purpose, absl::Duration wait)
      ABSL_LOCKS_EXCLUDED(lease_mutex_);

 private:
  enum class Listing {
    kAlways,
    kUnlessUnchanged,  // A folder that the store says is as it was when it was last listed is not listed again.
  };
  absl::Status SyncCatalog(Listing listing);
  absl::Status SyncPacks(Listing listing);
  absl::Status SyncCondemned();
  absl::Status SyncSnapshots(Listing listing);
  absl::Status FillSequences();

  absl::Status ChooseCatalogPath(const std::string& catalog_path);
  CatalogOptions catalog_options() const { return {.path = catalog_path_}; }
  absl::StatusOr<LeaseKeeper*> Keeper() ABSL_EXCLUSIVE_LOCKS_REQUIRED(lease_mutex_);

  std::string catalog_path_;
  std::unique_ptr<Catalog> catalog_;
  absl::Mutex lease_mutex_;
  std::unique_ptr<SightingBook> sightings_ ABSL_GUARDED_BY(lease_mutex_);
  std::unique_ptr<LeaseKeeper> keeper_ ABSL_GUARDED_BY(lease_mutex_);
  std::weak_ptr<Lease> shared_lease_ ABSL_GUARDED_BY(lease_mutex_);
};

// Larger ones are damage, and count as this one.
inline constexpr uint64_t kMaxSequence = uint64_t{1} << 62;

// Manifests.
std::string SnapshotObject(absl::string_view id);
std::string EncodeManifest(const RepositoryState& state, const stillpoint::manifest::v1::Snapshot& snapshot);
// The payload of a manifest. DATA_LOSS if it is not this snapshot's, or impossible.
absl::StatusOr<stillpoint::manifest::v1::Snapshot> ParseManifest(absl::string_view payload, absl::string_view id);
absl::StatusOr<stillpoint::manifest::v1::Snapshot> ReadManifest(const RepositoryState& state, absl::string_view id);

// Where repair sets an object aside.
std::string QuarantineObject(absl::string_view object);

// Rows of the catalog.
CatalogPack ToRow(const PackSummary& pack);
std::vector<CatalogNode> ToNodeRows(const PackSummary& pack);
// Those that another process did not find and add already.
absl::Status PutPackRows(RepositoryState& state, CatalogTransaction& change, const std::vector<PackSummary>& packs);
CatalogSnapshot ToRow(const stillpoint::manifest::v1::Snapshot& snapshot);
std::vector<uint64_t> HooksOf(const CatalogPack& pack);
PackName NameOf(const CatalogPack& pack);

}  // namespace still::store
