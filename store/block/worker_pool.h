// WorkerPool: the threads that hash, compress and decompress, each with its own contexts, which are costly to make.
//
// Urgent tasks go first: what frees memory (compressing a full group) before what takes more (hashing new blocks).
// Bounding the number of tasks is the callers' matter. A task must not wait for another task of the pool.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "store/block/frame.h"
#include "store/block/identity.h"

namespace still::store {

// What one thread needs to work on frames and blocks.
struct Scratch {
  explicit Scratch(absl::string_view hash_key) : hasher(hash_key) {}
  IdHasher hasher;
  FrameCodec codec;
  std::string io;  // Stored bytes on their way to or from the codec.
};

class WorkerPool {
 public:
  using Task = std::function<void(Scratch&)>;

  // `hash_key` must outlive the pool. 0 threads: one for each CPU. Threads start with the first task.
  WorkerPool(int threads, absl::string_view hash_key);
  // Runs what was submitted, then ends.
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return threads_wanted_; }
  absl::string_view hash_key() const { return hash_key_; }
  void Submit(Task task) ABSL_LOCKS_EXCLUDED(mutex_);
  void SubmitUrgent(Task task) ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls work(0) ... work(count - 1) on all threads and waits for them; stops early at the first error and returns it.
  absl::Status ParallelFor(uint64_t count, const std::function<absl::Status(uint64_t, Scratch&)>& work);

  // A scratch for a thread that is not the pool's; given back when the pointer goes.
  std::shared_ptr<Scratch> Borrow() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Run();
  void StartThreads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWorkOrEnds() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return ending_ || !urgent_.empty() || !tasks_.empty();
  }

  const int threads_wanted_;
  const absl::string_view hash_key_;
  absl::Mutex mutex_;
  std::deque<Task> urgent_ ABSL_GUARDED_BY(mutex_);
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Scratch>> spare_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::store
