// Log lines while the guest is frozen: kept in a bounded ring and written when it is thawed. A line that went to a
// file, a journal or a console in between could block the agent behind the very freeze that it has to end.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace still::agent {

// Thread-safe.
class QuietLog {
 public:
  static constexpr size_t kMaxLines = 256;
  static constexpr size_t kMaxLineBytes = 1024;

  explicit QuietLog(std::function<void(absl::string_view)> write) : write_(std::move(write)) {}

  void Line(absl::string_view line);
  // false: writes what was kept, and how many lines were dropped for want of room.
  void SetQuiet(bool quiet);

 private:
  const std::function<void(absl::string_view)> write_;
  absl::Mutex mutex_;
  bool quiet_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::string> kept_ ABSL_GUARDED_BY(mutex_);
  size_t dropped_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace still::agent
