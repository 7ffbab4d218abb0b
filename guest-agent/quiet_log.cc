#include "guest-agent/quiet_log.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace still::agent {

void QuietLog::Line(absl::string_view line) {
  {
    absl::MutexLock lock(&mutex_);
    if (quiet_) {
      if (kept_.size() == kMaxLines) {
        kept_.pop_front();
        ++dropped_;
      }
      kept_.emplace_back(line.substr(0, kMaxLineBytes));
      if (kept_.back().back() != '\n') kept_.back().back() = '\n';
      return;
    }
  }
  write_(line);
}

void QuietLog::SetQuiet(bool quiet) {
  std::deque<std::string> lines;
  size_t dropped = 0;
  {
    absl::MutexLock lock(&mutex_);
    quiet_ = quiet;
    if (quiet) return;
    lines = std::exchange(kept_, {});
    dropped = std::exchange(dropped_, 0);
  }
  if (dropped > 0) write_(absl::StrCat(dropped, " log lines were dropped while frozen\n"));
  for (const std::string& line : lines) write_(line);
}

}  // namespace still::agent
