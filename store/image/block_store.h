// BlockStore: one capture's way from blocks to places: what is known is found, what is new is stored. Shared by the
// images of a snapshot, so that a page of RAM finds the disk block it was read from. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/pack/block_index.h"
#include "store/pack/data_writer.h"

namespace still::store {

enum class BlockOutcome : uint8_t { kKept, kDuplicate, kNew };

struct BlockToPlace {
  BlockId id;
  const char* data = nullptr;  // kBlockSize bytes.
  // Where the parent's block at the same place of the image is; compared first.
  BlockPlace parent;
  // Filled in.
  BlockPlace place;
  BlockOutcome outcome = BlockOutcome::kNew;
};

class BlockStore {
 public:
  // `index` is filled with what may be used again.
  BlockStore(std::unique_ptr<BlockIndex> index, PackSet& packs, WorkerPool& pool, Throttle& throttle,
             DataWriter::Options options)
      : index_(std::move(index)), writer_(packs, pool, throttle, WithIndex(std::move(options))) {}

  absl::Status Place(absl::Span<BlockToPlace> blocks, Scratch& scratch) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    for (BlockToPlace& block : blocks) {
      block.outcome = BlockOutcome::kKept;
      if (!block.parent.is_zero() && index_->IdAt(block.parent, scratch) == block.id) {
        block.place = block.parent;
        continue;
      }
      block.outcome = BlockOutcome::kDuplicate;
      if (std::optional<BlockPlace> known = index_->Find(block.id, scratch)) {
        block.place = *known;
        continue;
      }
      block.outcome = BlockOutcome::kNew;
      STILL_ASSIGN_OR_RETURN(block.place, writer_.Add(block.id, block.data));
      index_->Append(block.place.pack, block.id);
    }
    return writer_.status();
  }

  // The id of a stored block; DATA_LOSS when its pack is damaged.
  absl::StatusOr<BlockId> IdAt(BlockPlace place, Scratch& scratch) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    std::optional<BlockId> id = index_->IdAt(place, scratch);
    if (!id) return absl::DataLossError("a block of the parent image cannot be found");
    return *id;
  }

  // Everything placed so far is durable. Not from a worker.
  absl::Status Flush() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return writer_.Flush();
  }
  absl::Status status() const { return writer_.status(); }
  uint64_t bytes_stored() const { return writer_.bytes_stored(); }

 private:
  DataWriter::Options WithIndex(DataWriter::Options options) {
    options.on_pack_begun = [this](PackNumber pack) { index_->BeginPack(pack); };
    return options;
  }

  absl::Mutex mutex_;
  std::unique_ptr<BlockIndex> index_ ABSL_PT_GUARDED_BY(mutex_);
  DataWriter writer_;
};

}  // namespace still::store
