#include "store/repository_state.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/log.h"
#include "store/block/bytes.h"
#include "store/crypto/derive.h"
#include "store/manifest_text.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

constexpr size_t kFrameCacheBytes = 32 * 1024 * 1024;
constexpr uint64_t kMaxManifestObject = 16 * 1024 * 1024 + 4096;
// A sweep is short; whoever meets one waits for it rather than fail.
constexpr absl::Duration kLeaseWait = absl::Seconds(30);
constexpr char kIdInfo[] = "stillpoint ids 1";

SecretBytes PlainHashKey(const RepositoryConfig& config) {
  return config.encrypted ? SecretBytes() : DeriveKey(config.id_secret.view(), config.id, kIdInfo);
}

// Sightings of leases, in the catalog. Those of an earlier boot are not comparable: its clock began anew.
class CatalogSightings final : public SightingBook {
 public:
  CatalogSightings(RepositoryState& state, std::string boot) : state_(state), boot_(std::move(boot)) {}

  absl::StatusOr<std::map<std::string, LeaseSighting>> Load() override {
    STILL_ASSIGN_OR_RETURN(std::vector<CatalogSighting> rows, state_.catalog().ListSightings());
    std::map<std::string, LeaseSighting> sightings;
    for (CatalogSighting& row : rows) {
      if (row.boot == boot_) sightings[row.lease] = {.content = std::move(row.content), .since = row.since};
    }
    return sightings;
  }

  absl::Status Keep(const std::map<std::string, LeaseSighting>& sightings) override {
    std::vector<CatalogSighting> rows;
    for (const auto& [lease, sighting] : sightings) {
      rows.push_back({.lease = lease, .content = sighting.content, .boot = boot_, .since = sighting.since});
    }
    STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state_.catalog().Begin());
    STILL_RETURN_IF_ERROR(change.PutSightings(rows));
    return change.Commit();
  }

 private:
  RepositoryState& state_;
  const std::string boot_;
};

}  // namespace

RepositoryState::RepositoryState(std::string path_in, Clock& clock_in, std::unique_ptr<ObjectStore> objects_in,
                                 RepositoryConfig config_in, std::optional<RepositoryKeys> keys_in, int workers)
    : path(std::move(path_in)),
      clock(clock_in),
      objects(std::move(objects_in)),
      config(std::move(config_in)),
      keys(std::move(keys_in)),
      plain_hash_key(PlainHashKey(config)),
      pool(workers, keys ? keys->id_key() : plain_hash_key.view()),
      packs(*objects, sealing_keys()),
      frames(packs, kFrameCacheBytes),
      nodes(packs, frames, *this) {}

absl::StatusOr<std::vector<NodeAddress>> RepositoryState::FindNode(const NodeId& id) {
  STILL_ASSIGN_OR_RETURN(std::vector<NodePlace> places, catalog_->FindNode(id.view()));
  if (places.empty()) {
    return absl::DataLossError(
        absl::StrCat("tree node ", absl::BytesToHexString(id.view().substr(0, 8)), "... is in no pack"));
  }
  std::vector<NodeAddress> addresses;
  addresses.reserve(places.size());
  for (const NodePlace& place : places) {
    addresses.push_back({.pack = PackName::FromBytes(place.pack), .node = place.ordinal});
  }
  return addresses;
}

absl::StatusOr<LeaseKeeper*> RepositoryState::Keeper() {
  if (keeper_ == nullptr) {
    STILL_ASSIGN_OR_RETURN(const ProcessView* processes, ProcessView::Real());
    sightings_ = std::make_unique<CatalogSightings>(*this, processes->self().boot);
    keeper_ = std::make_unique<LeaseKeeper>(*objects, clock, *processes, sightings_.get());
  }
  return keeper_.get();
}

absl::StatusOr<std::shared_ptr<Lease>> RepositoryState::HoldShared(const std::string& purpose) {
  std::shared_ptr<Lease> shared;
  {
    absl::MutexLock lock(&lease_mutex_);
    // One that was lost is of no use to newcomers; those who hold it find out when they check.
    if (std::shared_ptr<Lease> held = shared_lease_.lock(); held != nullptr && held->Check().ok()) return held;
    STILL_ASSIGN_OR_RETURN(LeaseKeeper * keeper, Keeper());
    STILL_ASSIGN_OR_RETURN(Lease lease,
                           keeper->Acquire({.kind = LeaseKind::kShared, .purpose = purpose, .wait = kLeaseWait}));
    shared = std::make_shared<Lease>(std::move(lease));
    shared_lease_ = shared;
  }
  // Until now others could prune, and what their catalog says (with encryption each host and user has one of his own)
  // is not in ours: nodes may have moved to new packs and the old ones be gone.
  if (config.encrypted) STILL_RETURN_IF_ERROR(SyncCatalog());
  return shared;
}

absl::StatusOr<std::shared_ptr<Lease>> RepositoryState::HoldToRead(const std::string& purpose) {
  if (!read_only) return HoldShared(purpose);
  // Whoever writes to it elsewhere may delete what is being read. That is then an error of the read, and no wrong data.
  LogWarning("no lease can be put where nothing can be written; elsewhere, do not prune meanwhile",
             {{"repository", path}});
  if (config.encrypted) STILL_RETURN_IF_ERROR(SyncCatalog());
  return std::shared_ptr<Lease>();
}

absl::Status RepositoryState::CheckWritable() const {
  if (!read_only) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(path, ": this repository can only be read here (",
                                                  std::strerror(*read_only),
                                                  "): its snapshots can be listed, verified, restored and exported; "
                                                  "what changes it is done where it can be written to"));
}

absl::StatusOr<std::shared_ptr<Lease>> RepositoryState::HoldExclusive(const std::string& purpose, absl::Duration wait) {
  absl::MutexLock lock(&lease_mutex_);
  STILL_ASSIGN_OR_RETURN(LeaseKeeper * keeper, Keeper());
  STILL_ASSIGN_OR_RETURN(Lease lease,
                         keeper->Acquire({.kind = LeaseKind::kExclusive, .purpose = purpose, .wait = wait}));
  return std::make_shared<Lease>(std::move(lease));
}

CatalogPack ToRow(const PackSummary& pack) {
  CatalogPack row = {.name = std::string(pack.name.view()),
                     .kind = static_cast<int>(pack.kind),
                     .size = pack.size,
                     .created_unix_ns = pack.created_unix_ns,
                     .blocks = pack.blocks,
                     .nodes = static_cast<uint32_t>(pack.nodes.size()),
                     .overhead = pack.overhead};
  for (uint64_t hook : pack.hooks) AppendInt(row.hooks, hook);
  return row;
}

std::vector<CatalogNode> ToNodeRows(const PackSummary& pack) {
  std::vector<CatalogNode> rows;
  rows.reserve(pack.nodes.size());
  for (uint32_t i = 0; i < pack.nodes.size(); ++i) {
    rows.push_back({.id = std::string(pack.nodes[i].view()), .ordinal = i});
  }
  return rows;
}

absl::Status PutPackRows(RepositoryState& state, CatalogTransaction& change, const std::vector<PackSummary>& packs) {
  for (const PackSummary& pack : packs) {
    STILL_ASSIGN_OR_RETURN(std::optional<CatalogPack> known, state.catalog().FindPack(pack.name.view()));
    if (!known) STILL_RETURN_IF_ERROR(change.PutPack(ToRow(pack), ToNodeRows(pack)));
  }
  return absl::OkStatus();
}

CatalogSnapshot ToRow(const manifest::Snapshot& snapshot) {
  CatalogSnapshot row = {.id = snapshot.id(),
                         .name = snapshot.name(),
                         .session = snapshot.session(),
                         .session_id = snapshot.session_id(),
                         .point_unix_ns = snapshot.point_unix_ns(),
                         .committed_unix_ns = snapshot.committed_unix_ns(),
                         .sequence = static_cast<int64_t>(std::min(snapshot.sequence(), kMaxSequence)),
                         .host_id = snapshot.host_id(),
                         .machine_id = snapshot.machine_id(),
                         .host = snapshot.host(),
                         .level = snapshot.consistency().level(),
                         .kind = snapshot.kind(),
                         .manifest = snapshot.SerializeAsString(),
                         .labels = {snapshot.labels().begin(), snapshot.labels().end()}};
  for (const manifest::Image& image : snapshot.images()) {
    row.images.push_back({.name = image.name(),
                          .role = image.role(),
                          .size = image.size(),
                          .root = image.root(),
                          .bitmap = image.bitmap()});
    row.logical_bytes += image.size();
  }
  std::sort(row.images.begin(), row.images.end(),
            [](const CatalogImage& a, const CatalogImage& b) { return a.name < b.name; });
  return row;
}

std::vector<uint64_t> HooksOf(const CatalogPack& pack) {
  std::vector<uint64_t> hooks(pack.hooks.size() / sizeof(uint64_t));
  for (size_t i = 0; i < hooks.size(); ++i) hooks[i] = LoadInt<uint64_t>(pack.hooks.data() + i * sizeof(uint64_t));
  return hooks;
}

PackName NameOf(const CatalogPack& pack) { return PackName::FromBytes(pack.name); }

std::string QuarantineObject(absl::string_view object) {
  return absl::StrCat("quarantine/", absl::StrReplaceAll(object, {{"/", "-"}}));
}

std::string SnapshotObject(absl::string_view id) { return absl::StrCat("snapshots/", id); }

std::string EncodeManifest(const RepositoryState& state, const manifest::Snapshot& snapshot) {
  std::string object;
  const std::string name = SnapshotObject(snapshot.id());
  FrameCodec().Encode(FrameKind::kManifest, {.keys = state.sealing_keys(), .object = name}, true,
                      snapshot.SerializeAsString(), object);
  return object;
}

absl::StatusOr<manifest::Snapshot> ParseManifest(absl::string_view payload, absl::string_view id) {
  manifest::Snapshot snapshot;
  if (payload.size() > MaxPlainSize(FrameKind::kManifest) || !ParseManifestTexts(payload, snapshot) ||
      snapshot.id() != id) {
    return absl::DataLossError("not the manifest of this snapshot");
  }
  for (const manifest::Image& image : snapshot.images()) {
    if (image.root().size() != NodeId::size() || image.size() > kMaxImageSize) {
      return absl::DataLossError(absl::StrCat("image ", image.name(), " is impossible"));
    }
  }
  return snapshot;
}

absl::StatusOr<manifest::Snapshot> ReadManifest(const RepositoryState& state, absl::string_view id) {
  const std::string name = SnapshotObject(id);
  STILL_ASSIGN_OR_RETURN(std::string object, state.objects->Get(name, kMaxManifestObject));
  auto payload = FrameCodec().Decode(FrameKind::kManifest, {.keys = state.sealing_keys(), .object = name}, object);
  if (!payload.ok()) return Annotate(payload.status(), name);
  auto snapshot = ParseManifest(*payload, id);
  if (!snapshot.ok()) return Annotate(snapshot.status(), name);
  return snapshot;
}

}  // namespace still::store
