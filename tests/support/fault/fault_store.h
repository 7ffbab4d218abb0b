// FaultObjectStore: an ObjectStore that does what it is told to do wrong, in front of one that works.
//
//   FaultObjectStore store(real, seed);
//   store.FailAt(3, absl::UnavailableError("..."));   // the third call from now on
//   store.CrashAt(k);                                  // the machine stops at the k-th change from now on
//   store.BeforeEach([&](const FaultObjectStore::Call& call) { ... });   // delays, interleavings, counting
//
// Everything follows from the seed and the order of the calls. Thread-safe; the hook is called without locks held.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "store/object/object_store.h"

namespace still {

class FaultObjectStore final : public ObjectStore {
 public:
  enum class Operation { kNewWriter, kAppend, kPublish, kSettle, kDelete, kGetRange, kSize, kList, kSweep, kSpace };
  struct Call {
    Operation operation;
    std::string object;  // Or the prefix; of a Publish or Delete the first name.
  };

  // `store` must outlive this.
  FaultObjectStore(ObjectStore& store, uint64_t seed) : store_(store), random_(seed) {}

  // The k-th call from now on (1: the next; 0: none) fails with `status` and does nothing.
  void FailAt(int64_t k, absl::Status status) ABSL_LOCKS_EXCLUDED(mutex_);
  // At the k-th change (new writer, append, publish, delete) from now on everything stops: a Publish or Delete of
  // several may have done the first of them, and all later calls give UNAVAILABLE until Restart(). 0: never.
  void CrashAt(int64_t k) ABSL_LOCKS_EXCLUDED(mutex_);
  void Restart() ABSL_LOCKS_EXCLUDED(mutex_);
  bool crashed() const ABSL_LOCKS_EXCLUDED(mutex_);
  // So many bytes can still be appended; then RESOURCE_EXHAUSTED.
  void SetRoom(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // Every read of this byte of the object gives it with one bit flipped.
  void FlipBit(std::string object, uint64_t bit) ABSL_LOCKS_EXCLUDED(mutex_);
  void BeforeEach(std::function<void(const Call& call)> hook) ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t calls() const ABSL_LOCKS_EXCLUDED(mutex_);
  int64_t changes() const ABSL_LOCKS_EXCLUDED(mutex_);

  const ObjectStoreCapabilities& capabilities() const override { return store_.capabilities(); }
  absl::StatusOr<std::unique_ptr<ObjectWriter>> NewWriter(absl::string_view name, PutOptions options) override;
  using ObjectStore::Publish;
  absl::Status Publish(std::vector<std::unique_ptr<ObjectWriter>> writers) override;
  absl::Status Settle(absl::Span<const std::string> names) override;
  absl::Status GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) override;
  absl::StatusOr<uint64_t> Size(absl::string_view name) override;
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix) override;
  absl::StatusOr<std::string> Stamp(absl::string_view folder) override { return store_.Stamp(folder); }
  using ObjectStore::Delete;
  absl::Status Delete(absl::Span<const std::string> names) override;
  absl::StatusOr<SweptLeftovers> SweepLeftovers() override;
  absl::StatusOr<uint64_t> AvailableBytes() override;

 private:
  class Writer;
  // OK: go on. Otherwise return this; *done tells how many of the call's `count` objects are to be done all the same.
  absl::Status Begin(Operation operation, absl::string_view object, size_t count = 0, size_t* done = nullptr)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status TakeRoom(size_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  ObjectStore& store_;
  mutable absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  std::function<void(const Call& call)> hook_ ABSL_GUARDED_BY(mutex_);
  int64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t fail_at_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t crash_at_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool crashed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t room_ ABSL_GUARDED_BY(mutex_) = ~uint64_t{0};
  std::multimap<std::string, uint64_t> flipped_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still
