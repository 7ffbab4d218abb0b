// DataWriter: turns new blocks into groups and groups into data packs, and publishes them while the capture goes on.
//
// Add() is for one thread at a time (its caller's lock) and never waits: groups are compressed by the pool's workers,
// packs are published by a thread of its own. Callers bound what is under way with the Throttle.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status.h"
#include "store/block/worker_pool.h"
#include "store/pack/pack_writer.h"

namespace still::store {

// Counts buffers under way, so that a fast source waits for slow workers. Thread-safe.
class Throttle {
 public:
  explicit Throttle(int limit) : limit_(limit) {}
  // Waits for room.
  void Take() ABSL_LOCKS_EXCLUDED(mutex_);
  // Does not wait: for what comes out of something that was taken already.
  void TakeNow() ABSL_LOCKS_EXCLUDED(mutex_);
  void Give() ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitUntilIdle() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return taken_ < limit_; }
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return taken_ == 0; }
  const int limit_;
  absl::Mutex mutex_;
  int taken_ ABSL_GUARDED_BY(mutex_) = 0;
};

class DataWriter {
 public:
  struct Options {
    Compression compression = Compression::kDefault;
    Clock* clock = nullptr;
    // Called when a pack is durable, by the publishing thread. An error fails the writer.
    std::function<absl::Status(const PackSummary&)> on_published;
    // Called by Add when it starts a pack.
    std::function<void(PackNumber)> on_pack_begun;
  };
  DataWriter(PackSet& packs, WorkerPool& pool, Throttle& throttle, Options options);
  // Abandons what is not published.
  ~DataWriter();
  DataWriter(const DataWriter&) = delete;
  DataWriter& operator=(const DataWriter&) = delete;

  // Takes a copy of kBlockSize bytes and says where they will be.
  absl::StatusOr<BlockPlace> Add(const BlockId& id, const char* data);
  // Ends the current group and pack, and waits until all packs are durable. Not from a worker.
  absl::Status Flush();
  // The first error of any worker or of publishing; everything fails after it.
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t bytes_stored() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A pack that takes groups, or waits for the last of them to be compressed.
  struct OpenData;
  struct Group;

  absl::Status BeginPack();
  void EndGroup();
  void EndPack();
  void CompressGroup(Group& group, Scratch& scratch);
  void GroupDone(OpenData& pack, Scratch& scratch) ABSL_LOCKS_EXCLUDED(mutex_);
  void Fail(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void PublishLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  bool SomethingToPublish() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ending_ || !ended_.empty(); }
  bool NoGroups() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return groups_under_way_ == 0; }
  bool AllPublished() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return unpublished_ == 0 || !status_.ok(); }

  PackSet& packs_;
  WorkerPool& pool_;
  Throttle& throttle_;
  const Options options_;
  // Of the thread that adds.
  std::shared_ptr<OpenData> pack_;
  std::unique_ptr<Group> group_;

  mutable absl::Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::vector<PackWriter::Ended> ended_ ABSL_GUARDED_BY(mutex_);
  int unpublished_ ABSL_GUARDED_BY(mutex_) = 0;  // Packs that were begun and are not durable.
  int groups_under_way_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_stored_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread publisher_;
};

}  // namespace still::store
