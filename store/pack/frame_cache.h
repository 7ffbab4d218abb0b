// FrameCache: the frames decoded last, for random access. Two readers that want the same frame at the same time decode
// it once. Thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "store/pack/pack_set.h"

namespace still::store {

class FrameCache {
 public:
  FrameCache(PackSet& packs, size_t limit_bytes) : packs_(packs), limit_bytes_(limit_bytes) {}

  absl::StatusOr<std::shared_ptr<const FrameBytes>> Get(const OpenPack& pack, uint32_t frame, Scratch& scratch)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Key = std::pair<PackNumber, uint32_t>;
  struct Entry {
    bool loading = true;
    std::shared_ptr<const FrameBytes> bytes;
    std::list<Key>::iterator recency;  // Valid when not loading.
  };

  PackSet& packs_;
  const size_t limit_bytes_;
  absl::Mutex mutex_;
  absl::CondVar loaded_;
  absl::flat_hash_map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<Key> recency_ ABSL_GUARDED_BY(mutex_);  // Most recent first.
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace still::store
