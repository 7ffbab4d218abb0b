#include "schedule/throttle.h"

#include <algorithm>
#include <utility>

namespace still::schedule {
namespace {

class ThrottledFile final : public WritableFile {
 public:
  ThrottledFile(std::unique_ptr<WritableFile> real, Throttle& throttle) : real_(std::move(real)), throttle_(throttle) {}
  absl::Status Append(absl::string_view data) override {
    throttle_.Take(data.size());
    return real_->Append(data);
  }
  void StartSync() override { real_->StartSync(); }
  absl::Status Sync() override { return real_->Sync(); }

 private:
  std::unique_ptr<WritableFile> real_;
  Throttle& throttle_;
};

}  // namespace

void Throttle::Take(uint64_t bytes) {
  absl::Duration wait;
  {
    absl::MutexLock lock(&mutex_);
    const absl::Duration now = clock_.Monotonic();
    paid_until_ = std::max(paid_until_, now - absl::Seconds(1));
    paid_until_ += absl::Seconds(static_cast<double>(bytes) / static_cast<double>(rate_));
    wait = paid_until_ - now;
  }
  if (wait > absl::ZeroDuration()) clock_.Sleep(wait);
}

absl::StatusOr<std::unique_ptr<WritableFile>> ThrottledFileSystem::CreateFile(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file, real_.CreateFile(path));
  return std::make_unique<ThrottledFile>(std::move(file), throttle_);
}

}  // namespace still::schedule
