// One line of progress on a terminal, redrawn a few times a second; elsewhere one line for each stage that takes over a
// second, and another every ten. Thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "snapshot/progress.h"

namespace still::cli {

// How fast a stage goes: a mean in which what is older than a few seconds hardly counts, so that a pause or a fast start
// does not spoil the estimate for ever. For one thread.
class RateMeter {
 public:
  // `done` at the time `now`; less than before begins anew.
  void Add(absl::Duration now, uint64_t done);
  // A second; 0: not known yet.
  double rate() const { return rate_; }

 private:
  bool begun_ = false;
  absl::Duration time_;
  uint64_t done_ = 0;
  double rate_ = 0;
};

// "restore vda       [######      ]  50%  512 MiB of 1.0 GiB  20.0 MiB/s  25 s left", cut to `width` columns (0: any).
std::string ProgressLine(const snapshot::Progress& progress, double rate, size_t width);
// The same in words, for logs: "restore vda: 50% of 1.0 GiB, 20.0 MiB/s, 25 s left".
std::string ProgressSentence(const snapshot::Progress& progress, double rate);

class ProgressBar {
 public:
  explicit ProgressBar(int fd);
  void Update(const snapshot::Progress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // Clears the line.
  void Finish() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Write(const std::string& text) const;

  const int fd_;
  const bool terminal_;
  absl::Mutex mutex_;
  std::string stage_ ABSL_GUARDED_BY(mutex_);
  RateMeter meter_ ABSL_GUARDED_BY(mutex_);
  absl::Duration last_shown_ ABSL_GUARDED_BY(mutex_);
  absl::Duration next_line_ ABSL_GUARDED_BY(mutex_);
  bool line_open_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace still::cli
