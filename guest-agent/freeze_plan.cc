#include "guest-agent/freeze_plan.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace still::agent {
namespace {

pb::SkippedMount Skipped(const MountEntry& mount, pb::SkippedMount::Reason reason, std::string detail = "") {
  pb::SkippedMount skipped;
  skipped.set_mount_point(mount.mount_point);
  skipped.set_fs_type(mount.fs_type);
  skipped.set_reason(reason);
  skipped.set_detail(std::move(detail));
  skipped.set_seen_by(mount.seen_by);
  return skipped;
}

std::string WithoutTrailingSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

const MountEntry* UpperMount(const std::vector<MountEntry>& mounts, const MountEntry& overlay) {
  std::string upper = MountOption(overlay.super_options, "upperdir");
  return upper.empty() ? nullptr : MountOfPath(mounts, upper);
}

std::string OverlayDetail(const std::vector<MountEntry>& mounts, const MountEntry& overlay) {
  std::string upper = MountOption(overlay.super_options, "upperdir");
  if (upper.empty()) return "has no upper directory";
  const MountEntry* mount = UpperMount(mounts, overlay);
  if (mount == nullptr) return absl::StrCat("its upper directory ", upper, " is on no mount seen here");
  return absl::StrCat("its writes go to ", mount->mount_point, " (", mount->fs_type, ")");
}

// The devices that the requested mount points stand for.
absl::StatusOr<std::set<DeviceId>> RequestedDevices(const std::vector<MountEntry>& mounts,
                                                    const std::vector<std::string>& requested) {
  std::set<DeviceId> devices;
  for (const std::string& path : requested) {
    // The last mount made there is the one that a path reaches.
    auto found = std::find_if(mounts.rbegin(), mounts.rend(), [name = WithoutTrailingSlashes(path)](auto& m) {
      return m.seen_by.empty() && m.mount_point == name;
    });
    if (found == mounts.rend()) return absl::InvalidArgumentError(absl::StrCat("freeze ", path, ": no mount point"));
    devices.insert(found->device);
    if (const MountEntry* upper = found->fs_type == "overlay" ? UpperMount(mounts, *found) : nullptr) {
      devices.insert(upper->device);
    }
  }
  return devices;
}

// Those of `order` that lie on `device`, and then itself; `placed` keeps each to one place and ends cycles.
void PlaceAfterDependents(const DeviceId& device, const std::vector<DeviceId>& order,
                          const std::map<DeviceId, std::set<DeviceId>>& lies_on, std::set<DeviceId>& placed,
                          std::vector<DeviceId>& result) {
  if (!placed.insert(device).second) return;
  for (const DeviceId& other : order) {
    auto found = lies_on.find(other);
    if (found == lies_on.end() || !found->second.contains(device)) continue;
    PlaceAfterDependents(other, order, lies_on, placed, result);
  }
  result.push_back(device);
}

}  // namespace

bool FreezesWithoutDevice(const MountEntry& mount) { return mount.fs_type == "btrfs" || mount.fs_type == "bcachefs"; }

const MountEntry* MountOfPath(const std::vector<MountEntry>& mounts, absl::string_view path) {
  const MountEntry* best = nullptr;
  for (const MountEntry& mount : mounts) {
    if (!mount.seen_by.empty()) continue;  // Its name is another namespace's.
    absl::string_view point = mount.mount_point;
    bool prefix = point == "/" || path == point || (absl::StartsWith(path, point) && path[point.size()] == '/');
    if (prefix && (best == nullptr || point.size() >= best->mount_point.size())) best = &mount;
  }
  return best;
}

absl::StatusOr<FreezePlan> MakeFreezePlan(const MountSurvey& survey, const std::vector<std::string>& requested) {
  STILL_ASSIGN_OR_RETURN(std::set<DeviceId> wanted, RequestedDevices(survey.mounts, requested));
  FreezePlan plan;
  std::map<DeviceId, PlannedFileSystem> by_device;
  std::vector<DeviceId> order;  // By the first mount of each, oldest first.
  for (const MountEntry& mount : survey.mounts) {
    if (!requested.empty() && !wanted.contains(mount.device)) {
      plan.skipped.push_back(Skipped(mount, pb::SkippedMount::NOT_REQUESTED));
    } else if (mount.device.anonymous() && !FreezesWithoutDevice(mount)) {
      std::string detail = mount.fs_type == "overlay" ? OverlayDetail(survey.mounts, mount) : "";
      plan.skipped.push_back(Skipped(mount, pb::SkippedMount::NO_BLOCK_DEVICE, std::move(detail)));
    } else if (mount.read_only_superblock) {
      plan.skipped.push_back(Skipped(mount, pb::SkippedMount::READ_ONLY));
    } else if (auto silent = survey.unanswering.find(mount.device); silent != survey.unanswering.end()) {
      plan.skipped.push_back(Skipped(mount, pb::SkippedMount::NO_ANSWER, silent->second));
    } else {
      auto [found, is_new] = by_device.try_emplace(mount.device);
      if (is_new) {
        found->second.device = mount.device;
        found->second.fs_type = mount.fs_type;
        found->second.device_name = mount.device.anonymous() ? mount.source : mount.device.ToString();
        order.push_back(mount.device);
      }
      found->second.mounts.push_back(
          {mount.mount_id, mount.mount_point, mount.root == "/", mount.open_path, mount.seen_by});
    }
  }
  std::reverse(order.begin(), order.end());
  std::set<DeviceId> placed;
  std::vector<DeviceId> sorted;
  for (const DeviceId& device : order) PlaceAfterDependents(device, order, survey.lies_on, placed, sorted);
  for (const DeviceId& device : sorted) plan.file_systems.push_back(std::move(by_device[device]));
  // A whole mount is shown rather than a bind mount of a part of it, and a requested one rather than another.
  std::set<std::string> names;
  for (const std::string& path : requested) names.insert(WithoutTrailingSlashes(path));
  for (PlannedFileSystem& fs : plan.file_systems) {
    std::stable_sort(fs.mounts.begin(), fs.mounts.end(), [&names](const auto& a, const auto& b) {
      return std::pair(names.contains(b.mount_point), b.whole) < std::pair(names.contains(a.mount_point), a.whole);
    });
  }
  return plan;
}

}  // namespace still::agent
