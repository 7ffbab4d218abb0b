// The SnapshotWriter of a repository: images side by side, then one commit.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "store/image/block_store.h"
#include "store/image/image_writer_impl.h"
#include "store/repository.h"
#include "store/repository_state.h"

namespace still::store {

class SnapshotWriterImpl final : public SnapshotWriter {
 public:
  // `lease`: kept until the writer goes.
  static absl::StatusOr<std::unique_ptr<SnapshotWriter>> Begin(RepositoryState& state, std::shared_ptr<Lease> lease);
  ~SnapshotWriterImpl() override;

  absl::StatusOr<std::unique_ptr<ImageWriter>> BeginImage(const ImageOptions& options) override;
  absl::StatusOr<std::string> Commit(manifest::Snapshot snapshot) override;
  uint64_t bytes_stored() const override;

 private:
  struct FinishedImage {
    ImageOptions options;
    NodeId root;
    ImageStats stats;
    bool is_finished = false;
  };

  SnapshotWriterImpl(RepositoryState& state, std::shared_ptr<Lease> lease, std::unique_ptr<BlockIndex> index);
  absl::Status PublishPacks();
  absl::Status FillIn(manifest::Snapshot& snapshot) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status PutRows(manifest::Snapshot& snapshot);

  RepositoryState& state_;
  const std::shared_ptr<Lease> lease_;
  Throttle throttle_;
  TreeWriter tree_;
  mutable absl::Mutex mutex_;
  std::map<std::string, FinishedImage> images_ ABSL_GUARDED_BY(mutex_);
  std::vector<PackSummary> published_ ABSL_GUARDED_BY(mutex_);
  bool committed_ = false;
  BlockStore blocks_;
};

}  // namespace still::store
