// SerialExecutor: one thread that runs what it is given, one after the other, in order. Everything that drives one VM
// goes through its executor, so that two operations never meet half-way. Thread-safe.
#pragma once

#include <functional>
#include <string>
#include <thread>

#include "base/bounded_queue.h"
#include "base/status.h"

namespace still {

class SerialExecutor {
 public:
  // `name` is shown by debuggers (at most 15 characters).
  explicit SerialExecutor(std::string name);
  // Finishes what was posted before, then ends.
  ~SerialExecutor();
  SerialExecutor(const SerialExecutor&) = delete;
  SerialExecutor& operator=(const SerialExecutor&) = delete;

  // Runs later, in order.
  void Post(std::function<void()> task);
  // Runs on the executor's thread and waits for it. Never call it from the executor's own thread.
  absl::Status Run(std::function<absl::Status()> task);

 private:
  // Operations on one VM come from people and a few programs; more than this many waiting is a bug.
  static constexpr size_t kMaxWaiting = 1024;
  BoundedQueue<std::function<void()>> tasks_{kMaxWaiting};
  std::thread thread_;
};

}  // namespace still
