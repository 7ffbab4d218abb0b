#include "tools/still/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "tools/still/format.h"
#include "tools/still/table.h"

namespace still::cli {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(100);
constexpr absl::Duration kWorthALine = absl::Seconds(1);
constexpr absl::Duration kNextLine = absl::Seconds(10);
// Shorter steps say more about the clock than about the speed.
constexpr double kMinStepSeconds = 0.1;
constexpr double kMemorySeconds = 5;
constexpr int kBarWidth = 24;

// "20.0 MiB/s  25 s left"; empty before the rate is known.
std::string RateAndRest(const snapshot::Progress& progress, double rate, const char* separator) {
  if (rate <= 0) return "";
  const uint64_t left = progress.total - std::min(progress.done, progress.total);
  return absl::StrCat(separator, FormatBytes(static_cast<uint64_t>(rate)), "/s", separator,
                      FormatSeconds(static_cast<double>(left) / rate), " left");
}

double Share(const snapshot::Progress& progress) {
  return static_cast<double>(std::min(progress.done, progress.total)) / static_cast<double>(progress.total);
}

}  // namespace

void RateMeter::Add(absl::Duration now, uint64_t done) {
  if (!begun_ || done < done_) {
    begun_ = true;
    rate_ = 0;
    time_ = now;
    done_ = done;
    return;
  }
  const double seconds = absl::ToDoubleSeconds(now - time_);
  if (seconds < kMinStepSeconds) return;
  const double step = static_cast<double>(done - done_) / seconds;
  const double weight = rate_ == 0 ? 1 : 1 - std::exp(-seconds / kMemorySeconds);
  rate_ += weight * (step - rate_);
  time_ = now;
  done_ = done;
}

std::string ProgressLine(const snapshot::Progress& progress, double rate, size_t width) {
  std::string line = absl::StrFormat("%-16s", Printable(progress.stage));
  if (progress.total > 0) {
    const int filled = static_cast<int>(Share(progress) * kBarWidth);
    // Of a narrow terminal the figures are worth more than the bar.
    if (width == 0 || width >= 80) {
      absl::StrAppend(&line, " [", std::string(static_cast<size_t>(filled), '#'),
                      std::string(static_cast<size_t>(kBarWidth - filled), ' '), "]");
    }
    absl::StrAppend(&line, absl::StrFormat(" %3d%%  ", static_cast<int>(Share(progress) * 100)),
                    FormatBytes(progress.total), RateAndRest(progress, rate, "  "));
  } else if (progress.done > 0) {
    absl::StrAppend(&line, "  ", FormatBytes(progress.done));
  }
  // A line that wraps could not be drawn over. Stages are ASCII.
  if (width > 0 && line.size() >= width) line.resize(width - 1);
  return line;
}

std::string ProgressSentence(const snapshot::Progress& progress, double rate) {
  if (progress.total == 0) return absl::StrCat(Printable(progress.stage), "...");
  return absl::StrCat(Printable(progress.stage), ": ", static_cast<int>(Share(progress) * 100), "% of ",
                      FormatBytes(progress.total), RateAndRest(progress, rate, ", "));
}

// A line is drawn over by what a terminal understands that says what it is.
ProgressBar::ProgressBar(int fd) : fd_(fd), terminal_(::isatty(fd) == 1 && !IsDumbTerminal()) {}

void ProgressBar::Update(const snapshot::Progress& progress) {
  absl::MutexLock lock(&mutex_);
  const absl::Duration now = Clock::Real().Monotonic();
  const bool new_stage = progress.stage != stage_;
  if (new_stage) {
    stage_ = progress.stage;
    meter_ = RateMeter();
    next_line_ = now + kWorthALine;
  }
  meter_.Add(now, progress.done);
  if (!terminal_) {
    if (now < next_line_) return;
    Write(absl::StrCat(ProgressSentence(progress, meter_.rate()), "\n"));
    next_line_ = now + kNextLine;
  } else if (new_stage || now - last_shown_ >= kRedraw) {
    last_shown_ = now;
    line_open_ = true;
    Write(absl::StrCat("\r\x1b[K", ProgressLine(progress, meter_.rate(), TableStyle::Of(fd_).width)));
  }
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
