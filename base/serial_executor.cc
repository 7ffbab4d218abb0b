#include "base/serial_executor.h"

#include <pthread.h>

#include <utility>

#include "absl/synchronization/notification.h"
#include "base/check.h"

namespace still {

SerialExecutor::SerialExecutor(std::string name) {
  thread_ = std::thread([this, name = name.substr(0, 15)] {
    ::pthread_setname_np(::pthread_self(), name.c_str());
    while (auto task = tasks_.Pop()) (*task)();
  });
}

SerialExecutor::~SerialExecutor() {
  tasks_.Close();
  thread_.join();
}

void SerialExecutor::Post(std::function<void()> task) { STILL_CHECK(tasks_.Push(std::move(task))); }

absl::Status SerialExecutor::Run(std::function<absl::Status()> task) {
  STILL_CHECK(std::this_thread::get_id() != thread_.get_id());
  absl::Status result;
  absl::Notification done;
  Post([&] {
    result = task();
    done.Notify();
  });
  done.WaitForNotification();
  return result;
}

}  // namespace still
