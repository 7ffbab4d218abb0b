#include "guest-agent/thaw_hooks.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace still::agent {
namespace {

constexpr absl::Duration kIdlePoll = absl::Milliseconds(10);

}  // namespace

ThawHooks::~ThawHooks() {
  std::thread last;
  {
    absl::MutexLock lock(&mutex_);
    last = std::move(thread_);
  }
  if (last.joinable()) last.join();
}

void ThawHooks::Start(const std::string& token, std::vector<std::string> paths, absl::Duration timeout) {
  std::reverse(paths.begin(), paths.end());
  absl::MutexLock lock(&mutex_);
  waiting_.push_back({token, std::move(paths), timeout});
  if (running_) return;
  // Joined under the lock, but it has left it for good: it said so.
  if (thread_.joinable()) thread_.join();
  running_ = true;
  thread_ = std::thread([this] { RunAll(); });
}

void ThawHooks::RunAll() {
  mutex_.Lock();
  while (!waiting_.empty()) {
    Batch batch = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    token_ = batch.token;
    results_.clear();
    pending_ = batch.paths.size();
    for (const std::string& path : batch.paths) {
      mutex_.Unlock();
      pb::HookResult result = hooks_.Run(path, "thaw", batch.timeout, [] { return false; });
      if (result.exit_code() != 0) {
        LogWarning("thaw hook failed", {{"hook", path}, {"exit", result.exit_code()}, {"output", result.output()}});
      }
      mutex_.Lock();
      results_.push_back(std::move(result));
      --pending_;
    }
  }
  running_ = false;
  mutex_.Unlock();
}

bool ThawHooks::WaitUntilIdle(absl::Duration limit, const std::function<bool()>& cancelled) {
  const absl::Duration deadline = Clock::Real().Monotonic() + limit;
  absl::MutexLock lock(&mutex_);
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !running_; };
  while (!mutex_.AwaitWithTimeout(absl::Condition(&idle), kIdlePoll)) {
    if (cancelled() || Clock::Real().Monotonic() >= deadline) return false;
  }
  return true;
}

void ThawHooks::Describe(pb::QuiesceStatusResponse& status) {
  absl::MutexLock lock(&mutex_);
  status.set_last_thawed_token(token_);
  for (const pb::HookResult& result : results_) *status.add_thaw_hooks() = result;
  size_t pending = pending_;
  for (const Batch& batch : waiting_) pending += batch.paths.size();
  status.set_thaw_hooks_pending(static_cast<uint32_t>(pending));
}

}  // namespace still::agent
