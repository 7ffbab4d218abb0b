// One line of progress on a terminal, redrawn a few times a second; elsewhere one line for each stage that takes over a
// second. Thread-safe.
#pragma once

#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "snapshot/progress.h"

namespace still::cli {

class ProgressBar {
 public:
  explicit ProgressBar(int fd);
  void Update(const snapshot::Progress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // Clears the line.
  void Finish() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Draw(absl::Duration now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Write(const std::string& text) const;

  const int fd_;
  const bool terminal_;
  absl::Mutex mutex_;
  snapshot::Progress shown_ ABSL_GUARDED_BY(mutex_);
  absl::Duration stage_started_ ABSL_GUARDED_BY(mutex_);
  absl::Duration last_drawn_ ABSL_GUARDED_BY(mutex_);
  bool line_open_ ABSL_GUARDED_BY(mutex_) = false;
  bool stage_announced_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace still::cli
