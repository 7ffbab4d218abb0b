#include "guest-agent/block_topology.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "guest-agent/bounded_call.h"
#include "guest-agent/freeze_plan.h"

namespace still::agent {
namespace {

constexpr size_t kMaxAttributeBytes = 64 << 10;
// Far above any real stack of partitions, mappings and loops.
constexpr int kMaxDepth = 32;
// A file system that is there answers in microseconds.
constexpr absl::Duration kLoopLimit = absl::Seconds(2);

// A superblock that lies on one of these waits for a network, or for a process: it is on no disk, and nobody waits for it.
bool IsRemote(const MountEntry& mount) {
  for (absl::string_view type : {"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "afs", "glusterfs"}) {
    if (mount.fs_type == type) return true;
  }
  return absl::StartsWith(mount.fs_type, "fuse") && mount.device.anonymous();
}

class Topology {
 public:
  Topology(const TopologySources& sources, const std::vector<MountEntry>& mounts)
      : sources_(sources), sysfs_(sources.sysfs), mounts_(mounts) {}

  // What lies under one superblock.
  struct Found {
    std::set<DeviceId> superblocks;
    std::string unanswering;
  };

  // Adds the superblock devices under block device `device`.
  void Collect(const DeviceId& device, Found& found, int depth) const {
    if (depth > kMaxDepth) return;
    std::string directory = absl::StrCat(sysfs_, "/dev/block/", device.ToString());
    for (const DeviceId& lower : LowerDevices(directory)) Collect(lower, found, depth + 1);
    absl::StatusOr<std::string> backing = ReadFile(JoinPath(directory, "loop/backing_file"), kMaxAttributeBytes);
    if (!backing.ok()) return;
    // A deleted file keeps its last name, with a note behind it.
    std::string path(absl::StripSuffix(absl::StripSuffix(*backing, "\n"), " (deleted)"));
    const MountEntry* by_name = MountOfPath(mounts_, path);
    if (by_name != nullptr && IsRemote(*by_name)) {
      found.unanswering = absl::StrCat("its data are on ", by_name->mount_point, " (", by_name->fs_type, ")");
      return;
    }
    absl::StatusOr<DeviceId> below = sources_.loop_backing(device);
    if (absl::IsDeadlineExceeded(below.status())) {
      found.unanswering = absl::StrCat("what its data are on, ", path, ", does not answer");
    } else if (below.ok() && IsMounted(*below)) {
      found.superblocks.insert(*below);
    } else if (by_name != nullptr) {
      found.superblocks.insert(by_name->device);
    }
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
    if (PathExists(JoinPath(directory, "partition")) && ReadDeviceNumber(JoinPath(directory, "../dev"), device)) {
      lower.insert(device);
    }
    std::string slaves = JoinPath(directory, "slaves");
    for (const std::string& name : ListDirectory(slaves).value_or(std::vector<std::string>())) {
      if (ReadDeviceNumber(absl::StrCat(slaves, "/", name, "/dev"), device)) lower.insert(device);
    }
    return lower;
  }

  const TopologySources& sources_;
  const std::string& sysfs_;
  const std::vector<MountEntry>& mounts_;
};

// By its node, which opening for reading has no effects on; the ioctl reports the device of the file that it uses, and
// asks that file's file system for it.
absl::StatusOr<DeviceId> AskLoopNode(const std::string& node) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(node, O_RDONLY | O_NONBLOCK));
  loop_info64 info{};
  if (::ioctl(fd.get(), LOOP_GET_STATUS64, &info) != 0) return ErrnoStatus(errno, node);
  return DeviceId{major(info.lo_device), minor(info.lo_device)};
}

}  // namespace

bool ReadDeviceNumber(const std::string& path, DeviceId& device) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxAttributeBytes);
  if (!text.ok()) return false;
  absl::string_view value = absl::StripAsciiWhitespace(*text);
  size_t colon = value.find(':');
  return colon != absl::string_view::npos && absl::SimpleAtoi(value.substr(0, colon), &device.major) &&
         absl::SimpleAtoi(value.substr(colon + 1), &device.minor);
}

absl::StatusOr<DeviceId> TopologySources::AskLoopDriver(const DeviceId& loop) {
  STILL_ASSIGN_OR_RETURN(std::string event,
                         ReadFile(absl::StrCat("/sys/dev/block/", loop.ToString(), "/uevent"), 4096));
  for (absl::string_view line : absl::StrSplit(event, '\n')) {
    if (!absl::ConsumePrefix(&line, "DEVNAME=")) continue;
    std::string node = JoinPath("/dev", line);
    return CallWithin<DeviceId>(kLoopLimit, absl::StrCat("ask ", node), [node] { return AskLoopNode(node); });
  }
  return absl::NotFoundError(absl::StrCat("loop device ", loop.ToString(), " has no name"));
}

std::set<DeviceId> MemberDevices(const MountEntry& mount, const std::string& sysfs) {
  if (!mount.device.anonymous()) return {mount.device};
  std::set<DeviceId> members;
  struct stat status {};
  // Below /dev, which no network serves: a source may have any name.
  if (!FreezesWithoutDevice(mount) || !absl::StartsWith(mount.source, "/dev/")) return members;
  if (::stat(mount.source.c_str(), &status) != 0 || !S_ISBLK(status.st_mode)) return members;
  DeviceId source{major(status.st_rdev), minor(status.st_rdev)};
  members.insert(source);
  std::string all = JoinPath(sysfs, "fs/btrfs");
  for (const std::string& uuid : ListDirectory(all).value_or(std::vector<std::string>())) {
    std::set<DeviceId> together;
    std::string devices = absl::StrCat(all, "/", uuid, "/devices");
    for (const std::string& name : ListDirectory(devices).value_or(std::vector<std::string>())) {
      DeviceId device;
      if (ReadDeviceNumber(absl::StrCat(devices, "/", name, "/dev"), device)) together.insert(device);
    }
    if (together.contains(source)) members.insert(together.begin(), together.end());
  }
  return members;
}

BlockTopology FindDependencies(const std::vector<MountEntry>& mounts, const TopologySources& sources) {
  Topology topology(sources, mounts);
  BlockTopology result;
  for (const MountEntry& mount : mounts) {
    if (result.lies_on.contains(mount.device) || !absl::StartsWith(mount.source, "/")) continue;
    if (mount.device.anonymous() && !FreezesWithoutDevice(mount)) continue;
    Topology::Found found;
    for (const DeviceId& member : MemberDevices(mount, sources.sysfs)) topology.Collect(member, found, 0);
    found.superblocks.erase(mount.device);
    result.lies_on[mount.device] = std::move(found.superblocks);
    if (!found.unanswering.empty()) result.unanswering[mount.device] = std::move(found.unanswering);
  }
  return result;
}

}  // namespace still::agent
