// The ImageReader of a repository.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "store/block/worker_pool.h"
#include "store/image/image_reader.h"
#include "store/image/tree_reader.h"

namespace still::store {

class ImageReaderImpl final : public ImageReader {
 public:
  // `holds`: kept until the reader goes (a lease). `what` names the image in errors.
  ImageReaderImpl(WorkerPool& pool, NodeStore& nodes, const NodeId& root, uint64_t size, std::string what,
                  std::shared_ptr<void> holds);

  uint64_t size() const override { return size_; }
  absl::Status Read(uint64_t offset, absl::Span<char> out) override;
  absl::StatusOr<std::vector<ImageExtent>> Extents(uint64_t offset, uint64_t length) override;
  absl::Status RestoreTo(int fd, const RestoreOptions& options) override;

 private:
  struct CachedLeaf {
    std::shared_ptr<const PlacedBlocks> blocks;
    std::list<uint64_t>::iterator recency;
  };
  // Blocks that lie one after the other, in the image and in a frame.
  struct Piece {
    std::shared_ptr<const FrameBytes> frame;
    const char* data;
    uint32_t blocks;
  };

  absl::StatusOr<std::shared_ptr<const PlacedBlocks>> GetLeaf(uint64_t leaf, Scratch& scratch)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The longest piece from block `begin` of the leaf on, before `end`. The block must not be zero.
  absl::StatusOr<Piece> GetPiece(const PlacedBlocks& blocks, uint32_t begin, uint32_t end, Scratch& scratch);
  absl::Status ReadFromLeaf(uint64_t leaf, uint32_t begin_byte, absl::Span<char> out, Scratch& scratch);
  absl::Status RestoreLeaf(int fd, bool target_is_zero, uint64_t leaf, Scratch& scratch);
  absl::Status RestoreBlocks(int fd, const PlacedBlocks& blocks, uint64_t leaf, uint32_t begin, uint32_t end,
                             Scratch& scratch);
  absl::Status Explain(const absl::Status& status, uint64_t leaf) const;

  WorkerPool& pool_;
  NodeStore& nodes_;
  const uint64_t size_;
  const std::string what_;
  const std::shared_ptr<void> holds_;
  absl::Mutex mutex_;
  TreeReader tree_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, CachedLeaf> leaves_ ABSL_GUARDED_BY(mutex_);
  std::list<uint64_t> recency_ ABSL_GUARDED_BY(mutex_);  // Most recent first.
};

}  // namespace still::store
