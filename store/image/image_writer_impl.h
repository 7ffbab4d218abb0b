// The ImageWriter of a repository.
//
// What is written becomes batches of up to 64 blocks, hashed by the workers in any order and applied in the order in
// which they were written: applying looks blocks up, stores new ones, and notes their places in the leaf stage.
// Finish() then makes the tree from the leaves.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "store/image/block_store.h"
#include "store/image/image_writer.h"
#include "store/image/leaf_stage.h"
#include "store/image/tree_builder.h"
#include "store/image/tree_reader.h"
#include "store/pack/tree_writer.h"

namespace still::store {

// What an image needs of its snapshot; all outlive it.
struct ImageWriterContext {
  WorkerPool& pool;
  Throttle& throttle;
  BlockStore& blocks;
  TreeWriter& tree;
  PackSet& packs;
  NodeStore& nodes;
  Clock& clock;
  // Called by Finish with the root.
  std::function<absl::Status(const NodeId& root, const ImageStats& stats)> on_finished;
};

class ImageWriterImpl final : public ImageWriter {
 public:
  ImageWriterImpl(ImageWriterContext context, const ImageOptions& options);
  ~ImageWriterImpl() override;

  absl::Status Write(uint64_t offset, absl::string_view data) override;
  absl::Status WriteFromFile(int fd, uint64_t file_offset, uint64_t offset, uint64_t length) override;
  absl::Status WriteZeros(uint64_t offset, uint64_t length) override;
  absl::Status KeepParent(uint64_t offset, uint64_t length) override;
  absl::Status Finish() override;
  ImageStats stats() const override;

 private:
  enum class RunKind : uint8_t { kData, kZero, kKeep };
  struct Run {
    RunKind kind;
    uint64_t first_block;
    uint64_t blocks;
  };
  struct Batch;

  absl::Status CheckRange(uint64_t offset, uint64_t length) const;
  // On the caller's thread: appends to the batch under construction, and hands it over when it is full.
  void AddRun(Run run);
  void AppendBlock(uint64_t block, const char* data, size_t size);
  void EnsureBatch();
  void SubmitBatch();
  // For a whole batch. Used again and again: fresh memory would cost a page fault for each block.
  std::unique_ptr<char[]> TakeBuffer() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status WriteFileExtent(int fd, uint64_t file_offset, uint64_t block, uint64_t bytes);
  // On workers.
  void HashBatch(const std::shared_ptr<Batch>& batch, Scratch& scratch);
  absl::Status ReadAndHash(Batch& batch, Scratch& scratch);
  void ApplyInOrder(const std::shared_ptr<Batch>& batch, Scratch& scratch) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Apply(Batch& batch, Scratch& scratch);
  absl::Status ApplyData(Batch& batch, const Run& run, size_t first_in_batch, Scratch& scratch);
  absl::Status ApplyMark(const Run& run);
  absl::Status MarkInLeaf(RunKind kind, uint64_t leaf, uint32_t begin, uint32_t end);
  absl::StatusOr<StagedLeaf*> Stage(uint64_t leaf);
  const PlacedBlocks* ParentLeaf(uint64_t leaf, Scratch& scratch);
  // In Finish.
  void WaitForBatches() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<NodeId> BuildTree(Scratch& scratch);
  absl::StatusOr<NodeId> FinishLeaf(uint64_t leaf, StagedLeaf& staged, Scratch& scratch);
  absl::Status TakeFromParent(uint64_t leaf, StagedLeaf& staged, Scratch& scratch);
  bool NodeIsKept(uint64_t first_leaf) const;

  bool NothingUnderWay() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return next_ == submitted_; }

  const ImageWriterContext context_;
  const bool is_stream_;
  uint64_t size_;    // Of a stream: the largest there may be, and in Finish what it has become.
  uint64_t leaves_;  // Likewise.
  // Of the writing thread.
  std::shared_ptr<Batch> batch_;
  uint64_t stream_end_ = 0;
  uint64_t sequence_ = 0;
  bool finished_ = false;

  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, std::shared_ptr<Batch>> ready_ ABSL_GUARDED_BY(mutex_);  // Hashed, by sequence.
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;                                 // To be applied.
  uint64_t submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool applying_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<char[]>> spare_ ABSL_GUARDED_BY(mutex_);  // As many as the throttle lets be under way.
  ImageStats stats_ ABSL_GUARDED_BY(mutex_);

  // Of whoever applies, and then of Finish.
  LeafStage stage_;
  std::vector<bool> kept_leaves_;  // Wholly as in the parent, not staged.
  std::unique_ptr<TreeReader> parent_;
  std::optional<uint64_t> parent_leaf_number_;
  PlacedBlocks parent_leaf_;
};

}  // namespace still::store
