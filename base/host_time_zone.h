// HostTimeZone: the zone that this host is set to, now. absl::LocalTimeZone() and localtime(3) keep what they read first, and
// a daemon outlives that: after a change of /etc/localtime its nightly work would go on by the old hours.
//
//   absl::FormatTime("%H:%M", time, HostTimeZone::Real().Now());
#pragma once

#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace still {

class HostTimeZone {
 public:
  // TZ comes before the file, as everywhere.
  explicit HostTimeZone(std::string file) : file_(std::move(file)) {}
  // That of /etc/localtime.
  static HostTimeZone& Real();

  // UTC when there is none that can be read, as in libc. Cheap: one stat(2). Thread-safe.
  absl::TimeZone Now() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::TimeZone FromFile(const std::string& path) ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string file_;
  absl::Mutex mutex_;
  std::string seen_ ABSL_GUARDED_BY(mutex_);  // Which file, and which of its versions, zone_ is from.
  int versions_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::TimeZone zone_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still
