// FakeGuest: a guest that exists only in memory. Its file systems freeze and thaw as the kernel's do, and it has a
// controller over them.
#pragma once

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "guest-agent/freeze_controller.h"
#include "tests/unit/guest-agent/fakes.h"
#include "tests/unit/guest-agent/requests.h"

namespace still::agent {

// The guest: freezer, hooks, clock, timer, marker and the controller over them.
class FakeGuest : public Freezer, public Disks {
 public:
  explicit FakeGuest(std::string mountinfo) : mountinfo_(std::move(mountinfo)) {
    controller_ = std::make_unique<FreezeController>(
        FreezeController::Parts{.freezer = *this,
                                .hooks = hooks,
                                .disks = *this,
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
  OpenForWriting FindOpen() override { return open; }
  OpenForWriting FindMapped() override { return mapped; }
  // One disk, with one use for each superblock that the controller says something of.
  DiskReport Describe(const DiskFacts& facts) override;
  std::optional<uint64_t> Writes(const DeviceId& device) override {
    absl::MutexLock lock(&mutex_);
    if (uncounted.contains(device)) return std::nullopt;
    return writes_[device];
  }
  void AddMount(const std::string& line) { mountinfo_ += line; }
  void CountWrite(const DeviceId& device) {
    absl::MutexLock lock(&mutex_);
    ++writes_[device];
  }

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
  OpenForWriting open, mapped;
  std::set<DeviceId> watched, uncounted;  // Besides what is CLEAN; whose writes the kernel does not count.
  std::set<int> unreachable;              // Mounts that are gone.
  std::function<void(const std::string& mount_point)> on_sync;        // On a thread of its own, without locks.
  std::function<void(const std::string& mount_point)> before_freeze;  // On the freezing thread, without locks.

 private:
  friend class FakeHandle;
  int Freeze(const std::string& mount_point);
  int Thaw(const std::string& mount_point);

  TempDir directory_;
  std::string mountinfo_;
  absl::Mutex mutex_;
  std::map<std::string, FakeSuperblock> superblocks_;
  std::vector<std::string> calls_;
  std::map<DeviceId, uint64_t> writes_;
  bool block_next_ = false;
  bool blocked_ = false;
  std::unique_ptr<FreezeController> controller_;
};

class FakeHandle : public FileSystemHandle {
 public:
  FakeHandle(FakeGuest& guest, std::string mount_point) : guest_(guest), mount_point_(std::move(mount_point)) {}
  absl::Status Sync() override {
    if (guest_.on_sync) guest_.on_sync(mount_point_);
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

inline absl::StatusOr<std::unique_ptr<FileSystemHandle>> FakeGuest::Open(int id, const std::string& mount_point) {
  if (unreachable.contains(id)) return absl::NotFoundError(mount_point);
  return std::make_unique<FakeHandle>(*this, mount_point);
}

inline DiskReport FakeGuest::Describe(const DiskFacts& facts) {
  DiskReport report;
  pb::Disk& disk = report.disks.emplace_back();
  disk.set_name("vda");
  for (const DeviceId& device : watched) report.watched[device].insert("vda");
  for (const MountEntry& mount : facts.survey.mounts) {
    report.nodes[mount.device] = {.name = mount.source, .disks = {"vda"}};
    const bool frozen = facts.frozen.contains(mount.device);
    auto clean = facts.clean.find(mount.device);
    if (!frozen && clean == facts.clean.end()) continue;
    pb::DiskUse& use = *disk.add_uses();
    use.set_name(mount.mount_point.substr(0, 64));  // Cut, as those of KernelDisks are.
    use.set_state(frozen ? pb::DiskUse::FROZEN : clean->second.empty() ? pb::DiskUse::CLEAN : pb::DiskUse::NOT_COVERED);
    if (!frozen) use.set_detail(clean->second);
    if (frozen) report.watched_if_counted[mount.device].insert("vda");
    if (use.state() == pb::DiskUse::CLEAN) report.watched[mount.device].insert("vda");
  }
  return report;
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

}  // namespace still::agent
