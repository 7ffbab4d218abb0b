#include "tools/still/progress_bar.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kWorthALine = absl::Seconds(1);
constexpr int kBarWidth = 24;

}  // namespace

ProgressBar::ProgressBar(int fd) : fd_(fd), terminal_(::isatty(fd) == 1) {}

void ProgressBar::Update(const snapshot::Progress& progress) {
  absl::MutexLock lock(&mutex_);
  absl::Duration now = Clock::Real().Monotonic();
  bool new_stage = progress.stage != shown_.stage;
  shown_ = progress;
  if (new_stage) {
    stage_started_ = now;
    stage_announced_ = false;
  }
  if (!terminal_) {
    if (!stage_announced_ && now - stage_started_ >= kWorthALine) {
      Write(absl::StrCat(shown_.stage, "...\n"));
      stage_announced_ = true;
    }
    return;
  }
  if (new_stage || now - last_drawn_ >= kRedraw) Draw(now);
}

void ProgressBar::Draw(absl::Duration now) {
  last_drawn_ = now;
  line_open_ = true;
  std::string line = absl::StrFormat("\r\x1b[K%-16s", shown_.stage);
  if (shown_.total > 0) {
    double share = static_cast<double>(shown_.done) / static_cast<double>(shown_.total);
    int filled = static_cast<int>(share * kBarWidth);
    absl::StrAppend(&line, " [", std::string(static_cast<size_t>(filled), '#'),
                    std::string(static_cast<size_t>(kBarWidth - filled), ' '), "] ",
                    absl::StrFormat("%3d%%  %s", static_cast<int>(share * 100), FormatBytes(shown_.total)));
    double seconds = absl::ToDoubleSeconds(now - stage_started_);
    if (seconds > 0.5 && shown_.done > 0) {
      double rate = static_cast<double>(shown_.done) / seconds;
      double left = static_cast<double>(shown_.total - shown_.done) / rate;
      absl::StrAppend(&line, "  ", FormatBytes(static_cast<uint64_t>(rate)), "/s  ",
                      absl::StrFormat("%.0f s left", left));
    }
  }
  Write(line);
}

void ProgressBar::Finish() {
  absl::MutexLock lock(&mutex_);
  if (line_open_) Write("\r\x1b[K");
  line_open_ = false;
}

void ProgressBar::Write(const std::string& text) const {
  // Progress that cannot be shown is no reason to fail.
  [[maybe_unused]] ssize_t written = ::write(fd_, text.data(), text.size());
}

}  // namespace still::cli
