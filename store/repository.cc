#include "store/repository.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "store/gc/prune.h"
#include "store/image/diff.h"
#include "store/image/image_reader_impl.h"
#include "store/object/directory_store.h"
#include "store/repository_impl.h"
#include "store/snapshot_reference.h"
#include "store/snapshot_writer_impl.h"
#include "store/vanished.h"
#include "store/verify/repair.h"
#include "store/verify/verify.h"

namespace still::store {
namespace {

constexpr uint64_t kMaxConfigObject = 4096;
constexpr size_t kIdBytes = 16;
constexpr size_t kIdSecretBytes = 32;
constexpr size_t kForgottenAtOnce = 64;

absl::StatusOr<KeySecret> SecretOf(const Credentials& credentials) {
  if (!credentials.passphrase.empty()) return KeySecret::Passphrase(credentials.passphrase);
  return KeySecret::KeyFile(credentials.key_file);
}

absl::StatusOr<std::unique_ptr<DirectoryObjectStore>> OpenObjects(const RepositoryOptions& options) {
  return DirectoryObjectStore::Open(options.path,
                                    options.file_system != nullptr ? *options.file_system : FileSystem::Real());
}

// The row is a copy: where it is damaged the manifest itself may be whole.
absl::StatusOr<manifest::Snapshot> ParseRow(const RepositoryState& state, const CatalogSnapshot& row) {
  auto snapshot = ParseManifest(row.manifest, row.id);
  if (!snapshot.ok()) snapshot = ReadManifest(state, row.id);
  if (snapshot.ok()) return snapshot;
  return absl::DataLossError(absl::StrCat("snapshot ", row.name.empty() ? row.id : row.name,
                                          " is damaged; run `still verify`, then `still repair`"));
}

// Why nothing can be written into this directory; empty: it can.
std::optional<int> WhyReadOnly(const std::string& path) {
  if (::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0) return std::nullopt;
  if (errno == EROFS || errno == EACCES || errno == EPERM) return errno;
  return std::nullopt;
}

absl::StatusOr<const manifest::Image*> ImageOf(const manifest::Snapshot& snapshot, absl::string_view name) {
  for (const manifest::Image& image : snapshot.images()) {
    if (image.name() != name) continue;
    if (image.root().size() != NodeId::size() || image.size() > kMaxImageSize) {
      return absl::DataLossError(absl::StrCat("image ", name, ": impossible root or size"));
    }
    return &image;
  }
  return absl::NotFoundError(absl::StrCat("snapshot ", snapshot.id(), ": has no image \"", name, "\""));
}

}  // namespace

absl::Status Repository::Init(const RepositoryOptions& options) {
  if (options.file_system == nullptr) STILL_RETURN_IF_ERROR(MakeDirectories(options.path));
  FileSystem& file_system = options.file_system != nullptr ? *options.file_system : FileSystem::Real();
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> there, file_system.List(options.path));
  if (std::find(there.begin(), there.end(), kConfigObject) != there.end()) {
    return absl::FailedPreconditionError(absl::StrCat(options.path, ": is a repository already"));
  }
  // Leftovers of an init that was interrupted are no obstacle; somebody's files are.
  for (const std::string& name : there) {
    if (name == ".writing" || name == "keys") continue;
    if (name == "lost+found") continue;  // Of a file system of its own, with nothing else on it.
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, ": not empty (", name, "); choose another directory"));
  }
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<DirectoryObjectStore> objects, OpenObjects(options));
  Clock& clock = options.clock != nullptr ? *options.clock : Clock::Real();
  RepositoryConfig config = {.encrypted = !options.credentials.empty(),
                             .compression = options.compression,
                             .created = clock.Now(),
                             .id = std::string(kIdBytes, '\0')};
  RandomBytes(config.id.data(), config.id.size());
  if (config.encrypted) {
    STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> stale_keys, objects->List("keys/"));
    for (const ObjectInfo& key : stale_keys) STILL_RETURN_IF_ERROR(objects->Delete(key.name));
    STILL_ASSIGN_OR_RETURN(KeySecret secret, SecretOf(options.credentials));
    NewKeyOptions key = {.label = "init", .cost = options.key_cost, .clock = &clock};
    STILL_RETURN_IF_ERROR(CreateKeyRing(*objects, secret, key).status());
  } else {
    config.id_secret = SecretBytes::Random(kIdSecretBytes);
  }
  // Last: with it the directory becomes a repository.
  return objects->Put(kConfigObject, EncodeConfig(config));
}

absl::StatusOr<std::unique_ptr<Repository>> Repository::Open(const RepositoryOptions& options) {
  auto opened = OpenObjects(options);
  if (absl::IsNotFound(opened.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, ": no repository there; make one with \"still init\""));
  }
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<DirectoryObjectStore> objects, std::move(opened));
  auto object = objects->Get(kConfigObject, kMaxConfigObject);
  if (absl::IsNotFound(object.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, ": no repository there; make one with \"still init\""));
  }
  if (!object.ok()) return object.status();
  auto config = ParseConfig(*object);
  if (absl::IsDataLoss(config.status())) {
    return absl::DataLossError(absl::StrCat(options.path, "/", kConfigObject, ": ", config.status().message(),
                                            "; put a copy of that file in its place, it has never changed"));
  }
  if (!config.ok()) return Annotate(config.status(), options.path);
  std::optional<RepositoryKeys> keys;
  if (config->encrypted) {
    if (options.credentials.empty()) {
      return absl::UnauthenticatedError(absl::StrCat(options.path, ": encrypted; give its passphrase or key file"));
    }
    STILL_ASSIGN_OR_RETURN(KeySecret secret, SecretOf(options.credentials));
    auto ring = OpenKeyRing(*objects, secret);
    if (!ring.ok()) return Annotate(ring.status(), options.path);
    keys = std::move(ring->keys);
  } else if (!options.credentials.empty()) {
    // Somebody may have put a plain repository in the place of the encrypted one.
    return absl::FailedPreconditionError(
        absl::StrCat(options.path, ": not encrypted, but a passphrase or key file was given"));
  }
  Clock& clock = options.clock != nullptr ? *options.clock : Clock::Real();
  auto state = std::make_unique<RepositoryState>(options.path, clock, std::move(objects), *std::move(config),
                                                 std::move(keys), options.workers);
  state->here = options.here;
  // Also where the caller's file system lies over the host's (a throttle); what is only simulated has no such path there.
  state->read_only = WhyReadOnly(options.path);
  STILL_RETURN_IF_ERROR(options.rebuild_catalog ? state->RebuildCatalog(options.catalog_path)
                                                : state->OpenCatalog(options.catalog_path));
  return std::make_unique<RepositoryImpl>(std::move(state), options.key_cost);
}

absl::StatusOr<std::unique_ptr<SnapshotWriter>> RepositoryImpl::BeginSnapshot() {
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Lease> lease, state_->HoldShared("capture"));
  return SnapshotWriterImpl::Begin(*state_, std::move(lease));
}

absl::StatusOr<std::vector<manifest::Snapshot>> RepositoryImpl::ListSnapshots() {
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogSnapshot> rows, state_->catalog().ListSnapshots());
  return Parse(rows);
}

absl::StatusOr<std::vector<manifest::Snapshot>> RepositoryImpl::ListSnapshotsOf(absl::string_view session) {
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogSnapshot> rows, state_->catalog().ListSnapshotsOf(session));
  return Parse(rows);
}

absl::StatusOr<std::shared_ptr<const std::vector<SnapshotSummary>>> RepositoryImpl::Summaries() {
  absl::MutexLock lock(&summarizing_);
  // Asked before the rows are read: what comes in between is read again.
  STILL_ASSIGN_OR_RETURN(const int64_t version, state_->catalog().Version());
  if (summaries_ == nullptr || version != summarized_) {
    STILL_ASSIGN_OR_RETURN(std::vector<SnapshotSummary> read, state_->catalog().ListSummaries());
    summaries_ = std::make_shared<const std::vector<SnapshotSummary>>(std::move(read));
    summarized_ = version;
  }
  return summaries_;
}

absl::StatusOr<std::vector<manifest::Snapshot>> RepositoryImpl::Parse(const std::vector<CatalogSnapshot>& rows) {
  std::vector<manifest::Snapshot> snapshots;
  snapshots.reserve(rows.size());
  for (const CatalogSnapshot& row : rows) {
    auto snapshot = ParseRow(*state_, row);
    if (snapshot.ok()) {
      snapshots.push_back(*std::move(snapshot));
    } else {
      // The others are none the worse for it.
      LogWarning("snapshot left out", {{"id", row.id}, {"error", snapshot.status().ToString()}});
    }
  }
  STILL_RETURN_IF_ERROR(ApplyHolds(*state_, snapshots));
  return snapshots;
}

absl::StatusOr<manifest::Snapshot> RepositoryImpl::FindSnapshot(absl::string_view reference) {
  // What is named in full is one row, however many there are.
  STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> row, state_->catalog().FindSnapshotByName(reference));
  if (!row.has_value()) {
    STILL_ASSIGN_OR_RETURN(row, state_->catalog().FindSnapshot(reference));
  }
  if (row.has_value()) {
    STILL_ASSIGN_OR_RETURN(std::vector<manifest::Snapshot> found, Parse({*std::move(row)}));
    if (found.empty()) {
      return absl::DataLossError(
          absl::StrCat("the manifest of snapshot ", reference, " is damaged; `still verify` says more"));
    }
    return std::move(found.front());
  }
  STILL_ASSIGN_OR_RETURN(std::vector<manifest::Snapshot> snapshots, ListSnapshots());
  const absl::StatusOr<size_t> index =
      ResolveSnapshot(snapshots, reference, {.now = state_->clock.Now(), .here = state_->here});
  if (index.ok()) return std::move(snapshots[*index]);
  if (absl::IsNotFound(index.status())) STILL_RETURN_IF_ERROR(CheckNotVanished(*state_, reference));
  return index.status();
}

absl::StatusOr<std::unique_ptr<ImageReader>> RepositoryImpl::OpenImage(const manifest::Snapshot& snapshot,
                                                                       absl::string_view image) {
  STILL_ASSIGN_OR_RETURN(const manifest::Image* entry, ImageOf(snapshot, image));
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Lease> lease, state_->HoldToRead("read"));
  std::string what =
      absl::StrCat("snapshot ", snapshot.name().empty() ? snapshot.id() : snapshot.name(), ", image ", entry->name());
  return std::make_unique<ImageReaderImpl>(state_->pool, state_->nodes, NodeId::FromBytes(entry->root()), entry->size(),
                                           std::move(what), std::move(lease));
}

absl::StatusOr<std::vector<ImageRange>> RepositoryImpl::Diff(const manifest::Snapshot& a, const manifest::Snapshot& b,
                                                             absl::string_view image) {
  STILL_ASSIGN_OR_RETURN(const manifest::Image* image_a, ImageOf(a, image));
  STILL_ASSIGN_OR_RETURN(const manifest::Image* image_b, ImageOf(b, image));
  TreeReader tree_a(state_->nodes, NodeId::FromBytes(image_a->root()), image_a->size());
  TreeReader tree_b(state_->nodes, NodeId::FromBytes(image_b->root()), image_b->size());
  std::shared_ptr<Scratch> scratch = state_->pool.Borrow();
  return DiffTrees(state_->packs, tree_a, tree_b, *scratch);
}

absl::StatusOr<std::vector<VanishedSnapshot>> RepositoryImpl::Vanished() {
  STILL_ASSIGN_OR_RETURN(std::vector<CatalogVanished> found, FindVanished(*state_));
  std::vector<VanishedSnapshot> vanished;
  for (CatalogVanished& one : found) {
    vanished.push_back({.id = std::move(one.id),
                        .name = std::move(one.name),
                        .session = std::move(one.session),
                        .host = std::move(one.host),
                        .noticed = one.noticed});
  }
  return vanished;
}

// Also one that has vanished. Held ones are refused.
absl::Status RepositoryImpl::CheckForgettable(const std::string& id) {
  STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> row, FindRow(id));
  if (!row) return absl::NotFoundError(absl::StrCat("snapshot ", id, ": there is none"));
  STILL_ASSIGN_OR_RETURN(manifest::Snapshot snapshot, ParseRow(*state_, *row));
  STILL_RETURN_IF_ERROR(ApplyHold(*state_, snapshot));
  auto label = snapshot.labels().find(std::string(kHoldLabel));
  if (label == snapshot.labels().end()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("snapshot ", row->name.empty() ? id : row->name, ": held",
                                                    label->second.empty() ? "" : absl::StrCat(" (", label->second, ")"),
                                                    "; release it first"));
}

// Of a vanished one, what is needed to parse it.
absl::StatusOr<std::optional<CatalogSnapshot>> RepositoryImpl::FindRow(const std::string& id) {
  STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> row, state_->catalog().FindSnapshot(id));
  if (row) return row;
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, FindVanished(*state_));
  for (const CatalogVanished& one : vanished) {
    if (one.id == id) return CatalogSnapshot{.id = one.id, .name = one.name, .manifest = one.manifest};
  }
  return std::nullopt;
}

absl::Status RepositoryImpl::Forget(const std::vector<std::string>& ids) {
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  for (const std::string& id : ids) STILL_RETURN_IF_ERROR(CheckForgettable(id));
  // Nobody waits for the catalog until very many are gone.
  for (size_t at = 0; at < ids.size(); at += kForgottenAtOnce) {
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(std::min(at + kForgottenAtOnce, ids.size()));
    STILL_RETURN_IF_ERROR(ForgetSome({ids.begin() + static_cast<std::ptrdiff_t>(at), end}));
  }
  return absl::OkStatus();
}

absl::Status RepositoryImpl::ForgetSome(const std::vector<std::string>& ids) {
  // Until the end of this transaction nobody can hold what is being forgotten.
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state_->catalog().Begin());
  std::vector<std::string> objects;
  for (const std::string& id : ids) {
    STILL_RETURN_IF_ERROR(CheckForgettable(id));
    STILL_RETURN_IF_ERROR(change.RemoveSnapshot(id));
    STILL_RETURN_IF_ERROR(change.RemoveVanished(id));
    objects.push_back(SnapshotObject(id));
    objects.push_back(HoldObject(id));
  }
  // First: a manifest that is gone without its note has vanished.
  STILL_RETURN_IF_ERROR(PutForgotten(*state_, ids, state_->clock.Now()));
  // The rows go also when some manifest stays: the next open lists it again.
  const absl::Status deleted = state_->objects->Delete(objects);
  return FirstError(deleted, change.Commit());
}

absl::Status RepositoryImpl::SetHold(const std::string& id, const Hold& hold) {
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  // Only to exclude Forget().
  STILL_ASSIGN_OR_RETURN(CatalogTransaction exclusion, state_->catalog().Begin());
  STILL_ASSIGN_OR_RETURN(std::optional<CatalogSnapshot> row, FindRow(id));
  if (!row) return absl::NotFoundError(absl::StrCat("snapshot ", id, ": there is none"));
  return PutHold(*state_, id, hold);
}

absl::Status RepositoryImpl::HoldSnapshot(const std::string& id, const std::string& reason) {
  return SetHold(id, {.held = true, .reason = reason});
}

absl::Status RepositoryImpl::ReleaseSnapshot(const std::string& id) { return SetHold(id, {.held = false}); }

absl::StatusOr<RepositoryStats> RepositoryImpl::Stats() {
  RepositoryStats stats;
  STILL_RETURN_IF_ERROR(state_->catalog().ForEachPack(false, [&](const CatalogPack& row) {
    ++stats.packs;
    if (row.condemned) ++stats.condemned_packs;
    stats.stored_bytes += row.size;
    stats.bookkeeping_bytes += row.overhead;
    stats.unique_blocks += row.blocks;
  }));
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> manifests, state_->objects->List("snapshots/"));
  stats.snapshots = manifests.size();
  STILL_ASSIGN_OR_RETURN(const std::vector<CatalogVanished> vanished, FindVanished(*state_));
  stats.vanished_snapshots = vanished.size();
  STILL_ASSIGN_OR_RETURN(uint64_t others, state_->catalog().FileBytes());
  for (const ObjectInfo& object : manifests) others += object.size;
  stats.stored_bytes += others;
  stats.bookkeeping_bytes += others;
  return stats;
}

absl::StatusOr<VerifyReport> RepositoryImpl::Verify(const VerifyOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Lease> lease, state_->HoldToRead("verify"));
  Damage damage;
  return VerifyRepository(*state_, options, damage);
}

absl::StatusOr<RepairReport> RepositoryImpl::Repair(const RepairOptions& options) {
  return RepairRepository(*state_, options);
}

absl::StatusOr<PruneReport> RepositoryImpl::Prune(const PruneOptions& options) {
  return PruneRepository(*state_, options);
}

absl::Status RepositoryImpl::RebuildCatalog() { return state_->RebuildCatalog(); }

absl::Status RepositoryImpl::RequireEncryption() const {
  if (encrypted()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(state_->path, ": not encrypted, so it has no keys"));
}

absl::StatusOr<std::vector<KeySlotInfo>> RepositoryImpl::ListKeys() {
  STILL_RETURN_IF_ERROR(RequireEncryption());
  return still::ListKeys(*state_->objects, *state_->keys);
}

absl::StatusOr<std::string> RepositoryImpl::AddKey(const Credentials& credentials, const std::string& label) {
  STILL_RETURN_IF_ERROR(RequireEncryption());
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  STILL_ASSIGN_OR_RETURN(KeySecret secret, SecretOf(credentials));
  return still::AddKey(*state_->objects, *state_->keys, secret, NewKey(label));
}

absl::StatusOr<std::string> RepositoryImpl::ChangeKey(absl::string_view key_id, const Credentials& credentials,
                                                      const std::string& label) {
  STILL_RETURN_IF_ERROR(RequireEncryption());
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  STILL_ASSIGN_OR_RETURN(KeySecret secret, SecretOf(credentials));
  return still::ChangeKey(*state_->objects, *state_->keys, key_id, secret, NewKey(label));
}

absl::Status RepositoryImpl::RemoveKey(absl::string_view key_id) {
  STILL_RETURN_IF_ERROR(RequireEncryption());
  STILL_RETURN_IF_ERROR(state_->CheckWritable());
  return RevokeKey(*state_->objects, *state_->keys, key_id);
}

}  // namespace still::store
