// PackWriter: one pack on its way: frames in any order, then footer and trailer. Thread-safe.
//
// The object is not visible before its ObjectWriter, given out by End(), is published.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/block/frame.h"
#include "store/object/object_store.h"
#include "store/pack/pack_format.h"
#include "store/pack/pack_set.h"

namespace still::store {

// A writer ends a pack when it has this much; see docs/format/repository.md.
inline constexpr uint64_t kPackTarget = 16 * 1024 * 1024;
inline constexpr uint32_t kPackTargetBlocks = 16384;

// What others need to know of a pack that was written or read.
struct PackSummary {
  PackName name;
  PackKind kind = PackKind::kData;
  uint64_t size = 0;  // Bytes.
  int64_t created_unix_ns = 0;
  uint32_t blocks = 0;
  uint64_t overhead = 0;        // Of its bytes, those that are not blocks.
  std::vector<uint64_t> hooks;  // store/pack/block_index.h
  std::vector<NodeId> nodes;    // In the footer's order.
};
PackSummary Summarize(const OpenPack& pack, bool encrypted);

class PackWriter {
 public:
  // Under a new random name.
  static absl::StatusOr<std::unique_ptr<PackWriter>> Begin(PackSet& packs, PackKind kind, absl::Time created);

  const PackName& name() const { return name_; }
  PackNumber number() const { return number_; }
  const std::string& object() const { return object_; }
  uint64_t bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

  // Frame `position` of the pack, encoded for FrameSeal{object(), position}.
  absl::Status AddFrame(uint32_t position, absl::string_view frame) ABSL_LOCKS_EXCLUDED(mutex_);

  // After the last frame: appends footer and trailer. `blocks` or `nodes` as the footer wants them. The writer gives
  // the object up; `summary` says what it is.
  struct Ended {
    std::unique_ptr<ObjectWriter> object;
    PackSummary summary;
  };
  absl::StatusOr<Ended> End(std::vector<BlockId> blocks, std::vector<PackNode> nodes, FrameCodec& codec)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  PackWriter(const RepositoryKeys* keys, const PackName& name, PackNumber number, PackKind kind, absl::Time created,
             std::unique_ptr<ObjectWriter> writer);

  const RepositoryKeys* const keys_;
  const PackName name_;
  const PackNumber number_;
  const std::string object_;
  const PackKind kind_;
  const int64_t created_unix_ns_;
  mutable absl::Mutex mutex_;
  std::unique_ptr<ObjectWriter> writer_ ABSL_GUARDED_BY(mutex_);
  std::vector<PackFrame> frames_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace still::store
