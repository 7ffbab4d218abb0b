#include "guest-agent/block_topology.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "guest-agent/freeze_plan.h"

namespace still::agent {
namespace {

constexpr size_t kMaxAttributeBytes = 64 << 10;
// Far above any real stack of partitions, mappings and loops.
constexpr int kMaxDepth = 32;

bool ReadDevice(const std::string& path, DeviceId& device) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxAttributeBytes);
  if (!text.ok()) return false;
  absl::string_view value = absl::StripAsciiWhitespace(*text);
  size_t colon = value.find(':');
  return colon != absl::string_view::npos && absl::SimpleAtoi(value.substr(0, colon), &device.major) &&
         absl::SimpleAtoi(value.substr(colon + 1), &device.minor);
}

class Topology {
 public:
  Topology(const TopologySources& sources, const std::vector<MountEntry>& mounts)
      : sources_(sources), sysfs_(sources.sysfs), mounts_(mounts) {}

  // Adds the superblock devices under block device `device`.
  void Collect(const DeviceId& device, std::set<DeviceId>& found, int depth) const {
    if (depth > kMaxDepth) return;
    std::string directory = absl::StrCat(sysfs_, "/dev/block/", device.ToString());
    for (const DeviceId& lower : LowerDevices(directory)) Collect(lower, found, depth + 1);
    absl::StatusOr<std::string> backing = ReadFile(JoinPath(directory, "loop/backing_file"), kMaxAttributeBytes);
    if (!backing.ok()) return;
    std::optional<DeviceId> below = sources_.loop_backing(device);
    if (below && IsMounted(*below)) {
      found.insert(*below);
      return;
    }
    // A deleted file keeps its last name, with a note behind it.
    std::string path(absl::StripSuffix(absl::StripSuffix(*backing, "\n"), " (deleted)"));
    const MountEntry* mount = MountOfPath(mounts_, path);
    if (mount != nullptr) found.insert(mount->device);
  }

  // The block devices of a superblock whose device number is anonymous: its source's, and with btrfs all of its others.
  std::set<DeviceId> Members(const MountEntry& mount) const {
    std::set<DeviceId> members;
    struct stat status {};
    if (::stat(mount.source.c_str(), &status) != 0 || !S_ISBLK(status.st_mode)) return members;
    DeviceId source{major(status.st_rdev), minor(status.st_rdev)};
    members.insert(source);
    std::string all = JoinPath(sysfs_, "fs/btrfs");
    for (const std::string& uuid : ListDirectory(all).value_or(std::vector<std::string>())) {
      std::set<DeviceId> together;
      std::string devices = absl::StrCat(all, "/", uuid, "/devices");
      for (const std::string& name : ListDirectory(devices).value_or(std::vector<std::string>())) {
        DeviceId device;
        if (ReadDevice(absl::StrCat(devices, "/", name, "/dev"), device)) together.insert(device);
      }
      if (together.contains(source)) members.insert(together.begin(), together.end());
    }
    return members;
  }

 private:
  // Not so for a btrfs subvolume, whose files have a device number of their own.
  bool IsMounted(const DeviceId& device) const {
    return std::any_of(mounts_.begin(), mounts_.end(), [&device](const MountEntry& m) { return m.device == device; });
  }

  std::set<DeviceId> LowerDevices(const std::string& directory) const {
    std::set<DeviceId> lower;
    DeviceId device;
    // A partition's directory lies in its disk's. (The way up goes through a symbolic link: /sys/dev/block/8:1.)
    if (PathExists(JoinPath(directory, "partition")) && ReadDevice(JoinPath(directory, "../dev"), device)) {
      lower.insert(device);
    }
    std::string slaves = JoinPath(directory, "slaves");
    for (const std::string& name : ListDirectory(slaves).value_or(std::vector<std::string>())) {
      if (ReadDevice(absl::StrCat(slaves, "/", name, "/dev"), device)) lower.insert(device);
    }
    return lower;
  }

  const TopologySources& sources_;
  const std::string& sysfs_;
  const std::vector<MountEntry>& mounts_;
};

}  // namespace

std::optional<DeviceId> TopologySources::AskLoopDriver(const DeviceId& loop) {
  // Opening it for reading has no effects, and the ioctl reports the device of the file that it uses.
  absl::StatusOr<std::string> event = ReadFile(absl::StrCat("/sys/dev/block/", loop.ToString(), "/uevent"), 4096);
  if (!event.ok()) return std::nullopt;
  for (absl::string_view line : absl::StrSplit(*event, '\n')) {
    if (!absl::ConsumePrefix(&line, "DEVNAME=")) continue;
    absl::StatusOr<OwnedFd> fd = OpenFile(JoinPath("/dev", line), O_RDONLY | O_NONBLOCK);
    loop_info64 info{};
    if (!fd.ok() || ::ioctl(fd->get(), LOOP_GET_STATUS64, &info) != 0) return std::nullopt;
    return DeviceId{major(info.lo_device), minor(info.lo_device)};
  }
  return std::nullopt;
}

std::map<DeviceId, std::set<DeviceId>> FindDependencies(const std::vector<MountEntry>& mounts,
                                                        const TopologySources& sources) {
  Topology topology(sources, mounts);
  std::map<DeviceId, std::set<DeviceId>> result;
  for (const MountEntry& mount : mounts) {
    if (result.contains(mount.device) || !absl::StartsWith(mount.source, "/")) continue;
    std::set<DeviceId> found;
    if (mount.device.anonymous()) {
      if (mount.fs_type != "btrfs" && mount.fs_type != "bcachefs") continue;
      for (const DeviceId& member : topology.Members(mount)) topology.Collect(member, found, 0);
    } else {
      topology.Collect(mount.device, found, 0);
    }
    found.erase(mount.device);
    result[mount.device] = std::move(found);
  }
  return result;
}

}  // namespace still::agent
