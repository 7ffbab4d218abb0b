// A clock that stands still until it is moved, its timer, hooks that are lambdas, a superblock, and what tests of real processes
// need.
#pragma once

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "guest-agent/hooks.h"
#include "guest-agent/lease_timer.h"

namespace still::agent {

// Polls until `condition` or twenty seconds have passed.
inline bool Eventually(const std::function<bool()>& condition) {
  for (absl::Time end = absl::Now() + absl::Seconds(20); absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
    if (condition()) return true;
  }
  return false;
}

// Zombies have ended: whoever inherits them may not reap.
inline bool IsRunning(pid_t pid) {
  std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat"), 4096).value_or("");
  size_t end = stat.rfind(')');
  return end != std::string::npos && stat[end + 2] != 'Z' && stat[end + 2] != 'X';
}

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/still-agent-XXXXXX";
    STILL_CHECK(::mkdtemp(name) != nullptr);
    path_ = name;
  }
  ~TempDir() { (void)RemoveTree(path_); }
  std::string operator/(absl::string_view name) const { return JoinPath(path_, name); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class FakeClock : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + Monotonic(); }
  absl::Duration Monotonic() const override {
    absl::MutexLock lock(&mutex_);
    return now_;
  }
  void Sleep(absl::Duration duration) override { Advance(duration); }
  void Advance(absl::Duration duration) {
    absl::MutexLock lock(&mutex_);
    now_ += duration;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Duration now_ = absl::Seconds(1000);
};

class FakeTimer : public LeaseTimer {
 public:
  void OnFire(std::function<void()> callback) override { callback_ = std::move(callback); }
  void Arm(absl::Duration deadline) override {
    absl::MutexLock lock(&mutex_);
    deadline_ = deadline;
  }
  void Disarm() override { Arm(absl::InfiniteDuration()); }
  absl::Duration deadline() {
    absl::MutexLock lock(&mutex_);
    return deadline_;
  }
  // As the kernel's would at time `now`.
  void Tick(absl::Duration now) {
    {
      absl::MutexLock lock(&mutex_);
      if (now < deadline_) return;
      deadline_ = absl::InfiniteDuration();
    }
    callback_();
  }

 private:
  std::function<void()> callback_;
  absl::Mutex mutex_;
  absl::Duration deadline_ = absl::InfiniteDuration();
};

// One superblock as the kernel sees it.
struct FakeSuperblock {
  int freezes = 0;
  int freeze_error = 0;          // Instead of freezing.
  std::vector<int> thaw_errors;  // Of the next thaws, instead of thawing.
};

class FakeHooks : public Hooks {
 public:
  std::vector<std::string> List() override { return names; }
  pb::HookResult Run(const std::string& path, absl::string_view verb, absl::Duration,
                     const std::function<bool()>& cancelled) override {
    ran.push_back(absl::StrCat(verb, " ", path));
    pb::HookResult result;
    result.set_path(path);
    result.set_verb(std::string(verb));
    result.set_exit_code(behaviour ? behaviour(path, verb, cancelled) : 0);
    return result;
  }

  std::vector<std::string> names;
  std::vector<std::string> ran;
  std::function<int(const std::string& path, absl::string_view verb, const std::function<bool()>& cancelled)> behaviour;
};

}  // namespace still::agent
