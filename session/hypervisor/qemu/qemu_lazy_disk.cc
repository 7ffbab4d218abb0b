#include "session/hypervisor/qemu/qemu_lazy_disk.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "session/hypervisor/qemu/qemu_command.h"

namespace still::session {
namespace {

using nlohmann::json;

const json* FindBy(const json& list, const char* key, const std::string& value) {
  auto found = std::find_if(list.begin(), list.end(), [&](const json& entry) { return TextAt(entry, key) == value; });
  return found == list.end() ? nullptr : &*found;
}

}  // namespace

std::string LazyBaseNode(size_t index) { return absl::StrCat(DiskNode(index), "-base"); }

std::string LazyOverlayNode(size_t index, bool read_only) {
  return read_only ? absl::StrCat(DiskNode(index), "-overlay") : DiskNode(index);
}

QemuLazyDisks::QemuLazyDisks(std::shared_ptr<QemuMachine> machine)
    : machine_(std::move(machine)), disks_([this] {
        std::vector<Disk> disks;
        for (size_t i = 0; i < machine_->disks.size(); ++i) {
          const DiskConfig& disk = machine_->disks[i];
          if (disk.backing_export.empty()) continue;
          disks.push_back({.index = i, .name = disk.name, .overlay = LazyOverlayNode(i, disk.read_only)});
        }
        return disks;
      }()) {}

std::string QemuLazyDisks::JobId(const Disk& disk) { return absl::StrCat("hydrate-", DiskNode(disk.index)); }

absl::StatusOr<std::vector<LazyDiskState>> QemuLazyDisks::Query() {
  absl::MutexLock lock(&mutex_);
  return QueryLocked();
}

absl::StatusOr<std::vector<LazyDiskState>> QemuLazyDisks::QueryLocked() {
  std::vector<LazyDiskState> states;
  if (disks_.empty()) return states;
  QmpClient& qmp = *machine_->qmp;
  // Jobs first: one that ends in between is then seen as neither running nor lacking anything.
  STILL_ASSIGN_OR_RETURN(json jobs, qmp.Execute("query-block-jobs", json::object(), kCommandDeadline));
  STILL_ASSIGN_OR_RETURN(json nodes, qmp.Execute("query-named-block-nodes", {{"flat", true}}, kCommandDeadline));
  const bool wake = !machine_->capture_active && std::exchange(resting_, false);
  for (const Disk& disk : disks_) {
    const json* node = FindBy(nodes, "node-name", disk.overlay);
    if (node == nullptr) return absl::InternalError(absl::StrCat("disk ", disk.name, " has no block node"));
    LazyDiskState state{.name = disk.name, .size = NumberAt(Member(*node, "image"), "virtual-size")};
    if (const json* job = FindBy(jobs, "device", JobId(disk))) {
      state.hydrating = true;
      state.hydrated = NumberAt(*job, "offset");
      if (wake) STILL_RETURN_IF_ERROR(Wake(disk));
    } else if (Member(*node, "backing_file").is_null()) {
      state.complete = true;
      state.hydrated = state.size;
      // Nothing lies over it any more: QEMU lets go of the server.
      if (FindBy(nodes, "node-name", LazyBaseNode(disk.index)) != nullptr) {
        json base = {{"node-name", LazyBaseNode(disk.index)}};
        STILL_RETURN_IF_ERROR(qmp.Run("blockdev-del", base, kCommandDeadline));
      }
    }
    states.push_back(std::move(state));
  }
  return states;
}

absl::Status QemuLazyDisks::Wake(const Disk& disk) {
  absl::Status resumed = machine_->qmp->Run("block-job-resume", {{"device", JobId(disk)}}, kCommandDeadline);
  // It has ended since, or never rested; the others wait for their turn.
  if (resumed.ok() || absl::IsNotFound(resumed) || absl::IsFailedPrecondition(resumed)) return absl::OkStatus();
  resting_ = true;  // The next look tries again.
  return resumed;
}

absl::Status QemuLazyDisks::Hydrate(uint64_t bytes_per_second) {
  absl::MutexLock lock(&mutex_);
  STILL_ASSIGN_OR_RETURN(std::vector<LazyDiskState> states, QueryLocked());
  for (size_t i = 0; i < states.size(); ++i) {
    if (states[i].complete) continue;
    if (states[i].hydrating) {
      json speed = {{"device", JobId(disks_[i])}, {"speed", bytes_per_second}};
      STILL_RETURN_IF_ERROR(machine_->qmp->Run("block-job-set-speed", speed, kCommandDeadline));
      continue;
    }
    // A job that meets an error ends, and is begun again by whoever sees that the server is back: what it has copied
    // already it passes quickly.
    json job = {{"job-id", JobId(disks_[i])}, {"device", disks_[i].overlay}, {"speed", bytes_per_second}};
    STILL_RETURN_IF_ERROR(machine_->qmp->Run("block-stream", job, kCommandDeadline));
  }
  return absl::OkStatus();
}

void QemuLazyDisks::Rest() {
  absl::MutexLock lock(&mutex_);
  resting_ = true;
  for (const Disk& disk : disks_) {
    // Most often there is no such job; and one that cannot rest only makes the pause a little longer.
    absl::Status paused = machine_->qmp->Run("block-job-pause", {{"device", JobId(disk)}}, kCommandDeadline);
    if (!paused.ok() && !absl::IsNotFound(paused)) LogDebug("hydration goes on", {{"error", paused.ToString()}});
  }
}

}  // namespace still::session
