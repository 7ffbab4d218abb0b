// TreeWriter: collects tree nodes into frames and tree packs. Thread-safe.
//
// Nothing is published here: the packs are given out at the end, so that they can be published after the data packs
// that their leaves name.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/block/frame.h"
#include "store/pack/pack_writer.h"

namespace still::store {

class TreeWriter {
 public:
  TreeWriter(PackSet& packs, Compression compression) : packs_(packs), codec_(compression) {}

  // `created`: of a pack that this begins. A node that was added before is not stored again.
  absl::Status Add(const NodeId& id, absl::string_view encoded, absl::Time created) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the last frame and pack. In the order in which to publish them.
  absl::StatusOr<std::vector<PackWriter::Ended>> TakePacks() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status EndFrame() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status EndPack() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  PackSet& packs_;
  absl::Mutex mutex_;
  FrameCodec codec_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<NodeId> added_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<PackWriter> pack_ ABSL_GUARDED_BY(mutex_);
  std::string frame_ ABSL_GUARDED_BY(mutex_);
  uint32_t frames_ ABSL_GUARDED_BY(mutex_) = 0;  // Of pack_, that have ended.
  std::vector<PackNode> nodes_ ABSL_GUARDED_BY(mutex_);
  std::vector<PackWriter::Ended> ended_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::store
