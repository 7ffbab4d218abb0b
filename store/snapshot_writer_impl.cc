#include "store/snapshot_writer_impl.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/names.h"
#include "base/random.h"
#include "store/image/stream_size.h"
#include "store/manifest_text.h"

namespace still::store {
namespace {

// Buffers of 256 KiB under way: 16 MiB of batches, and at most as much of groups.
constexpr int kBuffersUnderWay = 64;
constexpr size_t kMaxImageName = 64;
constexpr absl::string_view kImageNameCharacters = "abcdefghijklmnopqrstuvwxyz0123456789._-";

std::string NewSnapshotId() {
  std::string bytes(16, '\0');
  RandomBytes(bytes.data(), bytes.size());
  return absl::BytesToHexString(bytes);
}

absl::Status CheckImageOptions(const ImageOptions& options) {
  const std::string what = absl::StrCat("image \"", absl::CHexEscape(options.name.substr(0, kMaxImageName)), "\": ");
  if (options.name.empty() || options.name.size() > kMaxImageName ||
      options.name.find_first_not_of(kImageNameCharacters.data()) != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(what, "names are 1 to 64 of a-z, 0-9, '.', '_' and '-'"));
  }
  const bool too_large = options.size > kMaxImageSize && options.size != kSizeOfStream;
  if (too_large || options.parent_size > kMaxImageSize) {
    return absl::InvalidArgumentError(absl::StrCat(what, "larger than 2^50 bytes"));
  }
  if (!options.parent_root.empty() && options.parent_root.size() != NodeId::size()) {
    return absl::InvalidArgumentError(absl::StrCat(what, "parent's root is not the id of a tree"));
  }
  return absl::OkStatus();
}

// Everything whose blocks may be used again.
absl::StatusOr<std::unique_ptr<BlockIndex>> MakeIndex(RepositoryState& state) {
  std::vector<CatalogPack> rows;
  uint64_t blocks = 0;
  auto index = std::make_unique<BlockIndex>(state.packs);
  STILL_RETURN_IF_ERROR(state.catalog().ForEachPack(true, [&](const CatalogPack& row) {
    if (row.kind != static_cast<int>(PackKind::kData)) return;
    if (row.condemned) {
      index->Exclude(state.packs.Add(NameOf(row)));
      return;
    }
    blocks += row.blocks;
    rows.push_back(row);
  }));
  const uint64_t modulus = BlockIndex::ChooseModulus(blocks);
  std::shared_ptr<Scratch> scratch = state.pool.Borrow();
  for (const CatalogPack& row : rows) {
    const PackNumber pack = state.packs.Add(NameOf(row));
    if (modulus == 1) {
      index->LoadPack(pack, *scratch);
    } else {
      index->AddHooks(pack, HooksOf(row), modulus);
    }
  }
  return index;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotWriter>> SnapshotWriterImpl::Begin(RepositoryState& state,
                                                                          std::shared_ptr<Lease> lease) {
  // Packs of captures that were interrupted, or are under way elsewhere, are as good as any.
  STILL_RETURN_IF_ERROR(state.SyncCatalog());
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<BlockIndex> index, MakeIndex(state));
  return std::unique_ptr<SnapshotWriter>(new SnapshotWriterImpl(state, std::move(lease), std::move(index)));
}

SnapshotWriterImpl::SnapshotWriterImpl(RepositoryState& state, std::shared_ptr<Lease> lease,
                                       std::unique_ptr<BlockIndex> index)
    : state_(state),
      lease_(std::move(lease)),
      throttle_(kBuffersUnderWay),
      tree_(state.packs, state.config.compression),
      blocks_(std::move(index), state.packs, state.pool, throttle_,
              {.compression = state.config.compression,
               .clock = &state.clock,
               .on_published =
                   [this](const PackSummary& pack) {
                     absl::MutexLock lock(&mutex_);
                     published_.push_back(pack);
                     return absl::OkStatus();
                   },
               .on_pack_begun = {}}) {}

SnapshotWriterImpl::~SnapshotWriterImpl() {
  if (committed_ || !blocks_.status().ok()) return;
  // What was stored so far is of use to the next attempt.
  absl::Status status = blocks_.Flush();
  if (!status.ok()) LogWarning("abandoned capture not kept", {{"error", status.ToString()}});
}

uint64_t SnapshotWriterImpl::bytes_stored() const { return blocks_.bytes_stored(); }

absl::StatusOr<std::unique_ptr<ImageWriter>> SnapshotWriterImpl::BeginImage(const ImageOptions& options) {
  STILL_RETURN_IF_ERROR(CheckImageOptions(options));
  absl::MutexLock lock(&mutex_);
  auto [at, is_new] = images_.try_emplace(options.name);
  if (!is_new) return absl::InvalidArgumentError(absl::StrCat("image \"", options.name, "\": twice in one snapshot"));
  at->second.options = options;
  auto on_finished = [this, name = options.name](const NodeId& root, const ImageStats& stats) {
    absl::MutexLock finished_lock(&mutex_);
    FinishedImage& image = images_[name];
    image.root = root;
    image.stats = stats;
    image.is_finished = true;
    return absl::OkStatus();
  };
  return std::make_unique<ImageWriterImpl>(ImageWriterContext{.pool = state_.pool,
                                                              .throttle = throttle_,
                                                              .blocks = blocks_,
                                                              .tree = tree_,
                                                              .packs = state_.packs,
                                                              .nodes = state_.nodes,
                                                              .clock = state_.clock,
                                                              .on_finished = std::move(on_finished)},
                                           options);
}

absl::Status SnapshotWriterImpl::PublishPacks() {
  STILL_RETURN_IF_ERROR(blocks_.Flush());
  STILL_ASSIGN_OR_RETURN(std::vector<PackWriter::Ended> trees, tree_.TakePacks());
  if (trees.empty()) return absl::OkStatus();
  std::vector<std::unique_ptr<ObjectWriter>> objects;
  objects.reserve(trees.size());
  for (PackWriter::Ended& tree : trees) objects.push_back(std::move(tree.object));
  STILL_RETURN_IF_ERROR(state_.objects->Publish(std::move(objects)));
  absl::MutexLock lock(&mutex_);
  for (PackWriter::Ended& tree : trees) published_.push_back(std::move(tree.summary));
  return absl::OkStatus();
}

absl::Status SnapshotWriterImpl::FillIn(manifest::Snapshot& snapshot) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [name, image] : images_) {
    if (!image.is_finished) return absl::FailedPreconditionError(absl::StrCat("image \"", name, "\": not finished"));
    auto* entries = snapshot.mutable_images();
    auto at = std::find_if(entries->begin(), entries->end(),
                           [&name = name](const auto& entry) { return entry.name() == name; });
    manifest::Image& entry = at == entries->end() ? *snapshot.add_images() : *at;
    entry.set_name(name);
    entry.set_role(image.options.role);
    entry.set_size(image.options.size == kSizeOfStream ? image.stats.bytes_written : image.options.size);
    entry.set_root(std::string(image.root.view()));
    entry.set_bytes_read(image.stats.bytes_written);
  }
  for (const manifest::Image& entry : snapshot.images()) {
    if (images_.contains(entry.name())) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("image \"", entry.name(), "\": in the manifest, but was not written"));
  }
  return absl::OkStatus();
}

absl::Status SnapshotWriterImpl::PutRows(manifest::Snapshot& snapshot) {
  std::vector<PackSummary> packs;
  {
    absl::MutexLock lock(&mutex_);
    packs = published_;
  }
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state_.catalog().Begin());
  // Within the transaction: no other commit through this catalog can take the same.
  STILL_ASSIGN_OR_RETURN(int64_t newest, state_.catalog().NewestSequence());
  snapshot.set_sequence(std::min(static_cast<uint64_t>(newest) + 1, kMaxSequence));
  // First, because a name that is taken must leave no trace.
  STILL_RETURN_IF_ERROR(change.PutSnapshot(ToRow(snapshot)));
  STILL_RETURN_IF_ERROR(PutPackRows(state_, change, packs));
  // Within the transaction: until it ends nobody else can take the name.
  STILL_RETURN_IF_ERROR(state_.objects->Put(SnapshotObject(snapshot.id()), EncodeManifest(state_, snapshot)));
  absl::Status status = change.Commit();
  if (status.ok()) return status;
  // Without its row it would be listed after the next open, although we are about to say that it failed.
  // Others may have seen it already.
  absl::Status deleted = PutForgotten(state_, {snapshot.id()}, state_.clock.Now());
  if (deleted.ok()) deleted = state_.objects->Delete(SnapshotObject(snapshot.id()));
  return FirstError(std::move(status), deleted);
}

absl::StatusOr<std::string> SnapshotWriterImpl::Commit(manifest::Snapshot snapshot) {
  STILL_CHECK(!committed_);
  if (!snapshot.name().empty()) STILL_RETURN_IF_ERROR(CheckNewName("snapshot", snapshot.name()));
  // Whatever guests and file systems call their things: nobody could parse the manifest otherwise.
  EscapeTexts(snapshot);
  STILL_RETURN_IF_ERROR(FillIn(snapshot));
  STILL_RETURN_IF_ERROR(PublishPacks());
  // Without it a sweep may have deleted what this snapshot uses.
  STILL_RETURN_IF_ERROR(Annotate(lease_->Check(), "the repository's lease was lost; take the snapshot again"));
  snapshot.set_id(NewSnapshotId());
  if (snapshot.host_id().empty()) {
    snapshot.set_host(state_.here.name);
    snapshot.set_host_id(state_.here.id);
  }
  snapshot.set_committed_unix_ns(absl::ToUnixNanos(state_.clock.Now()));
  snapshot.mutable_drain()->set_bytes_stored(bytes_stored());
  STILL_RETURN_IF_ERROR(PutRows(snapshot));
  committed_ = true;
  return snapshot.id();
}

}  // namespace still::store
