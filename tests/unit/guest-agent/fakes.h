// A guest that exists only in memory: file systems that freeze and thaw as the kernel's do, a clock that stands still
// until it is moved, hooks that are lambdas.
#pragma once

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "guest-agent/freeze_controller.h"

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

// One superblock as the kernel sees it.
struct FakeSuperblock {
  int freezes = 0;
  int freeze_error = 0;          // Instead of freezing.
  std::vector<int> thaw_errors;  // Of the next thaws, instead of thawing.
};

// The guest: freezer, hooks, clock, timer, marker and the controller over them.
class FakeGuest : public Freezer {
 public:
  explicit FakeGuest(std::string mountinfo) : mountinfo_(std::move(mountinfo)) {
    controller_ = std::make_unique<FreezeController>(
        FreezeController::Parts{.freezer = *this,
                                .hooks = hooks,
                                .marker = FreezeMarker(marker_path()),
                                .timer = timer,
                                .clock = clock,
                                .set_quiet = [this](bool quiet) { quiet_changes.push_back(quiet); },
                                .thaw_patience = absl::Seconds(20)});
  }

  absl::StatusOr<MountSurvey> Survey() override {
    ++surveys;
    MountSurvey survey;
    STILL_ASSIGN_OR_RETURN(survey.mounts, ParseMountTable(mountinfo_));
    return survey;
  }
  absl::StatusOr<std::unique_ptr<FileSystemHandle>> Open(int mount_id, const std::string& mount_point) override;
  void PinMemory() override { ++pinned; }

  FreezeController& controller() { return *controller_; }
  void DestroyController() { controller_.reset(); }
  std::string marker_path() const { return directory_ / "frozen"; }
  FakeSuperblock& superblock(const std::string& mount_point) { return superblocks_[mount_point]; }
  int frozen_now() {
    absl::MutexLock lock(&mutex_);
    int frozen = 0;
    for (auto& [name, superblock] : superblocks_) frozen += superblock.freezes > 0;
    return frozen;
  }
  // "freeze /a", "thaw /a", "sync /a", in the order in which they were asked for.
  std::vector<std::string> calls() {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }
  void Advance(absl::Duration duration) {
    clock.Advance(duration);
    timer.Tick(clock.Monotonic());
  }

  // The next FIFREEZE does not return until it is released.
  void BlockNextFreeze() {
    absl::MutexLock lock(&mutex_);
    block_next_ = true;
  }
  void WaitUntilFreezeBlocks() {
    absl::MutexLock lock(&mutex_);
    STILL_CHECK(mutex_.AwaitWithTimeout(absl::Condition(&blocked_), absl::Seconds(20)));
  }
  void ReleaseFreeze() {
    absl::MutexLock lock(&mutex_);
    blocked_ = false;
  }
  void WaitForState(pb::QuiesceState state) {
    STILL_CHECK(Eventually([&] { return controller().Status().state() == state; }));
  }

  FakeClock clock;
  FakeTimer timer;
  FakeHooks hooks;
  int surveys = 0;
  int pinned = 0;
  std::vector<bool> quiet_changes;
  std::function<void(const std::string& mount_point)> before_freeze;  // On the freezing thread, without locks.

 private:
  friend class FakeHandle;
  int Freeze(const std::string& mount_point);
  int Thaw(const std::string& mount_point);

  TempDir directory_;
  const std::string mountinfo_;
  absl::Mutex mutex_;
  std::map<std::string, FakeSuperblock> superblocks_;
  std::vector<std::string> calls_;
  bool block_next_ = false;
  bool blocked_ = false;
  std::unique_ptr<FreezeController> controller_;
};

class FakeHandle : public FileSystemHandle {
 public:
  FakeHandle(FakeGuest& guest, std::string mount_point) : guest_(guest), mount_point_(std::move(mount_point)) {}
  absl::Status Sync() override {
    absl::MutexLock lock(&guest_.mutex_);
    guest_.calls_.push_back("sync " + mount_point_);
    return absl::OkStatus();
  }
  int Freeze() override { return guest_.Freeze(mount_point_); }
  int Thaw() override { return guest_.Thaw(mount_point_); }

 private:
  FakeGuest& guest_;
  const std::string mount_point_;
};

inline absl::StatusOr<std::unique_ptr<FileSystemHandle>> FakeGuest::Open(int, const std::string& mount_point) {
  return std::make_unique<FakeHandle>(*this, mount_point);
}

inline int FakeGuest::Freeze(const std::string& mount_point) {
  if (before_freeze) before_freeze(mount_point);
  absl::MutexLock lock(&mutex_);
  calls_.push_back("freeze " + mount_point);
  if (block_next_) {
    block_next_ = false;
    blocked_ = true;
    auto released = [this] { return !blocked_; };
    mutex_.Await(absl::Condition(&released));
  }
  FakeSuperblock& superblock = superblocks_[mount_point];
  if (superblock.freeze_error != 0) return superblock.freeze_error;
  if (superblock.freezes > 0) return EBUSY;
  ++superblock.freezes;
  return 0;
}

inline int FakeGuest::Thaw(const std::string& mount_point) {
  absl::MutexLock lock(&mutex_);
  calls_.push_back("thaw " + mount_point);
  FakeSuperblock& superblock = superblocks_[mount_point];
  if (!superblock.thaw_errors.empty()) {
    int error = superblock.thaw_errors.front();
    superblock.thaw_errors.erase(superblock.thaw_errors.begin());
    return error;
  }
  if (superblock.freezes == 0) return EINVAL;
  --superblock.freezes;
  return 0;
}

inline std::string OneDisk() { return "90000021 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"; }

inline std::string FourDisks() {
  return "90000021 1 254:0 / / rw - ext4 /dev/vda rw\n"
         "90000022 90000021 0:5 / /proc rw - proc proc rw\n"
         "90000030 90000021 254:16 / /a rw - ext4 /dev/vdb rw\n"
         "90000031 90000021 254:32 / /b rw - xfs /dev/vdc rw\n"
         "90000032 90000021 254:48 / /c rw - ext4 /dev/vdd rw\n";
}

}  // namespace still::agent
