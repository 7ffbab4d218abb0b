#include "store/block/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/synchronization/blocking_counter.h"

namespace still::store {
namespace {

int ThreadsFor(int wanted) { return wanted > 0 ? wanted : std::max(1u, std::thread::hardware_concurrency()); }

}  // namespace

WorkerPool::WorkerPool(int threads, absl::string_view hash_key)
    : threads_wanted_(ThreadsFor(threads)), hash_key_(hash_key) {}

WorkerPool::~WorkerPool() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void WorkerPool::StartThreads() {
  while (threads_.size() < static_cast<size_t>(threads_wanted_)) threads_.emplace_back([this] { Run(); });
}

void WorkerPool::Submit(Task task) {
  absl::MutexLock lock(&mutex_);
  StartThreads();
  tasks_.push_back(std::move(task));
}

void WorkerPool::SubmitUrgent(Task task) {
  absl::MutexLock lock(&mutex_);
  StartThreads();
  urgent_.push_back(std::move(task));
}

void WorkerPool::Run() {
  Scratch scratch(hash_key_);
  while (true) {
    Task task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WorkerPool::HasWorkOrEnds));
      std::deque<Task>& queue = urgent_.empty() ? tasks_ : urgent_;
      if (queue.empty()) return;
      task = std::move(queue.front());
      queue.pop_front();
    }
    task(scratch);
  }
}

absl::Status WorkerPool::ParallelFor(uint64_t count, const std::function<absl::Status(uint64_t, Scratch&)>& work) {
  if (count == 0) return absl::OkStatus();
  const int tasks = static_cast<int>(std::min<uint64_t>(threads_wanted_, count));
  std::atomic<uint64_t> next{0};
  absl::Mutex mutex;
  absl::Status status;  // The first error.
  absl::BlockingCounter running(tasks);
  for (int i = 0; i < tasks; ++i) {
    Submit([&](Scratch& scratch) {
      for (uint64_t item; (item = next.fetch_add(1)) < count;) {
        absl::Status result = work(item, scratch);
        if (result.ok()) continue;
        next.store(count);
        absl::MutexLock lock(&mutex);
        if (status.ok()) status = std::move(result);
      }
      running.DecrementCount();
    });
  }
  running.Wait();
  return status;
}

std::shared_ptr<Scratch> WorkerPool::Borrow() {
  std::unique_ptr<Scratch> scratch;
  {
    absl::MutexLock lock(&mutex_);
    if (!spare_.empty()) {
      scratch = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  if (scratch == nullptr) scratch = std::make_unique<Scratch>(hash_key_);
  return {scratch.release(), [this](Scratch* returned) {
            absl::MutexLock lock(&mutex_);
            spare_.emplace_back(returned);
          }};
}

}  // namespace still::store
