#include "guest-agent/disk_survey.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clean_text.h"
#include "base/file.h"
#include "guest-agent/block_topology.h"
#include "guest-agent/bounded_call.h"
#include "guest-agent/freeze_plan.h"

namespace still::agent {
namespace {

constexpr size_t kMaxDisks = 256;
constexpr size_t kMaxNodes = 4096;
constexpr size_t kMaxSysfsBytes = 64 << 10;
constexpr size_t kMaxSerialBytes = 64;
// A name in a report: a path may be much longer, and there may be thousands.
constexpr size_t kMaxNameBytes = 256;
// Of all disks: a report must fit into one message.
constexpr int kMaxAllUses = 2048;
// A disk that is there answers in microseconds.
constexpr absl::Duration kClaimLimit = absl::Seconds(2);
// The fields of /sys/block/NAME/stat (Documentation/block/stat.rst).
constexpr size_t kWriteField = 4;
constexpr size_t kDiscardField = 11;

std::string ReadAttribute(const std::string& path) {
  std::string text = ReadFile(path, kMaxSysfsBytes).value_or("");
  absl::StripAsciiWhitespace(&text);
  return text;
}

std::string Serial(const std::string& directory) {
  std::string serial = ReadAttribute(JoinPath(directory, "serial"));
  if (serial.empty()) serial = ReadAttribute(JoinPath(directory, "device/serial"));
  if (serial.empty()) {
    // SCSI's page of the unit serial number: four bytes of header.
    std::string page = ReadFile(JoinPath(directory, "device/vpd_pg80"), kMaxSysfsBytes).value_or("");
    serial = page.size() > 4 ? page.substr(4) : "";
    absl::StripAsciiWhitespace(&serial);
  }
  std::erase_if(serial, [](char c) { return !absl::ascii_isprint(static_cast<unsigned char>(c)); });
  return serial.substr(0, kMaxSerialBytes);
}

// "0000:00:08.0"
bool IsPciAddress(absl::string_view word) {
  std::vector<absl::string_view> parts = absl::StrSplit(word, absl::ByAnyChar(":."));
  return parts.size() == 4 && parts[0].size() >= 4 && parts[1].size() == 2 && parts[2].size() == 2 &&
         parts[3].size() == 1 && std::all_of(word.begin(), word.end(), [](unsigned char c) {
           return absl::ascii_isxdigit(c) || c == ':' || c == '.';
         });
}

// The innermost PCI device on the way to it.
std::string PciAddress(const std::string& directory) {
  char target[4096];
  ssize_t size = ::readlink(directory.c_str(), target, sizeof target);
  if (size < 0) return "";
  std::string address;
  for (absl::string_view word : absl::StrSplit(absl::string_view(target, static_cast<size_t>(size)), '/')) {
    if (IsPciAddress(word)) address = std::string(word);
  }
  return address;
}

// Cleaned first: what is no UTF-8 grows fourfold.
std::string Cut(const std::string& name) { return CleanText(name, kMaxNameBytes); }

struct Swap {
  std::string path;
  std::optional<DeviceId> device;      // Of a swap partition.
  std::optional<DeviceId> superblock;  // A swap file's.
};

std::vector<Swap> ReadSwaps(const std::string& file, const std::vector<MountEntry>& mounts) {
  std::vector<Swap> swaps;
  std::string text = ReadFile(file, 1 << 20).value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    std::vector<std::string> fields = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (fields.size() < 2 || !absl::StartsWith(fields[0], "/")) continue;  // The heading.
    Swap swap{.path = DecodeOctalEscapes(fields[0]), .device = {}, .superblock = {}};
    struct stat status {};
    if (fields[1] == "partition") {
      if (::stat(swap.path.c_str(), &status) == 0) swap.device = {major(status.st_rdev), minor(status.st_rdev)};
    } else if (const MountEntry* mount = MountOfPath(mounts, swap.path)) {
      swap.superblock = mount->device;
    }
    swaps.push_back(std::move(swap));
  }
  return swaps;
}

// Looks through one disk after the other.
class Looker {
 public:
  Looker(const KernelDisks::Sources& sources, const DiskFacts& facts, DiskReport& report)
      : sources_(sources), facts_(facts), report_(report), swaps_(ReadSwaps(sources.swaps, facts.survey.mounts)) {
    for (const MountEntry& mount : facts.survey.mounts) {
      mounts_.try_emplace(mount.device, &mount);
      for (const DeviceId& member : MemberDevices(mount, sources.sysfs)) on_device_[member].insert(mount.device);
    }
  }

  pb::Disk Look(const std::string& name) {
    pb::Disk disk;
    std::string directory = NodeDirectory(name);
    disk.set_name(name);
    disk.set_serial(Serial(directory));
    disk.set_pci_address(PciAddress(absl::StrCat(sources_.sysfs, "/block/", name)));
    disk.set_read_only(ReadAttribute(JoinPath(directory, "ro")) == "1");
    seen_nodes_.clear();
    seen_superblocks_.clear();
    stacked_ = false;
    LookAtNode(name, disk);
    WatchWholeDisk(directory, disk);
    if (!facts_.open.incomplete.empty()) AddUnknown(name, facts_.open.incomplete, disk);
    if (!facts_.survey.incomplete.empty()) AddUnknown(name, facts_.survey.incomplete, disk);
    return disk;
  }

 private:
  std::string NodeDirectory(const std::string& name) const {
    return absl::StrCat(sources_.sysfs, "/class/block/", name);
  }

  pb::DiskUse* Add(pb::DiskUse::Kind kind, pb::DiskUse::State state, const std::string& device, pb::Disk& disk) {
    // The last one says that there were more, and that nothing is known of them.
    if (disk.uses_size() >= kMaxDiskUses || (all_uses_ >= kMaxAllUses && disk.uses_size() > 0)) return nullptr;
    ++all_uses_;
    bool last = disk.uses_size() == kMaxDiskUses - 1 || all_uses_ >= kMaxAllUses;
    pb::DiskUse* use = disk.add_uses();
    use->set_device(device);
    use->set_kind(last ? pb::DiskUse::UNKNOWN : kind);
    use->set_state(last ? pb::DiskUse::NOT_COVERED : state);
    if (last) use->set_detail("it has more uses than the agent tells");
    return last ? nullptr : use;
  }

  void AddUnknown(const std::string& device, const std::string& why, pb::Disk& disk) {
    pb::DiskUse* use = Add(pb::DiskUse::UNKNOWN, pb::DiskUse::NOT_COVERED, device, disk);
    if (use != nullptr) use->set_detail(why);
  }

  // A partition, a mapping or a whole disk, and what lies on it.
  void LookAtNode(const std::string& name, pb::Disk& disk) {
    if (!seen_nodes_.insert(name).second) return;
    std::string directory = NodeDirectory(name);
    DeviceId device;
    if (seen_nodes_.size() > kMaxNodes || !ReadDeviceNumber(JoinPath(directory, "dev"), device)) {
      AddUnknown(name, "it could not be looked at", disk);
      return;
    }
    DiskReport::Node& node = report_.nodes[device];
    node.name = name;
    node.disks.insert(disk.name());
    bool used = false;
    if (auto opener = facts_.open.devices.find(device); opener != facts_.open.devices.end()) {
      pb::DiskUse* use = Add(pb::DiskUse::OPENED, pb::DiskUse::NOT_COVERED, name, disk);
      if (use != nullptr) use->set_name(opener->second);
      if (use != nullptr) use->set_detail("has it open for writing");
      used = true;
    }
    for (const DeviceId& superblock : on_device_[device]) {
      LookAtSuperblock(superblock, name, device, disk);
      used = true;
    }
    if (StandsStill(on_device_[device])) report_.watched_if_counted[device].insert(disk.name());
    for (const Swap& swap : swaps_) {
      if (swap.device != device) continue;
      pb::DiskUse* use = Add(pb::DiskUse::SWAP, pb::DiskUse::VOLATILE, name, disk);
      if (use != nullptr) use->set_name(Cut(swap.path));
      used = true;
    }
    if (!Holders(directory).empty()) stacked_ = true;
    for (const std::string& upper : NodesAbove(directory)) {
      LookAtNode(upper, disk);
      used = true;
    }
    if (!used) LookAtUnused(name, device, disk);
  }

  // Everything on it is frozen, and no swap file is among it.
  bool StandsStill(const std::set<DeviceId>& superblocks) const {
    for (const DeviceId& superblock : superblocks) {
      if (!facts_.frozen.contains(superblock)) return false;
      for (const Swap& swap : swaps_) {
        if (swap.superblock == superblock) return false;
      }
    }
    return !superblocks.empty();
  }

  // A write to the disk itself is not counted for the partition that it hits. Swap writes; and so does what is made of
  // several devices, when nobody else does (md marks itself clean, a thin pool commits).
  void WatchWholeDisk(const std::string& directory, const pb::Disk& disk) {
    DeviceId device;
    if (stacked_ || !ReadDeviceNumber(JoinPath(directory, "dev"), device)) return;
    for (const pb::DiskUse& use : disk.uses()) {
      if (use.state() == pb::DiskUse::VOLATILE || use.state() == pb::DiskUse::NOT_COVERED) return;
    }
    report_.watched_if_counted[device].insert(disk.name());
  }

  static std::vector<std::string> Holders(const std::string& directory) {
    return ListDirectory(JoinPath(directory, "holders")).value_or(std::vector<std::string>());
  }

  // Partitions and what is made of it.
  static std::vector<std::string> NodesAbove(const std::string& directory) {
    std::vector<std::string> above = Holders(directory);
    for (const std::string& name : ListDirectory(directory).value_or(std::vector<std::string>())) {
      if (PathExists(absl::StrCat(directory, "/", name, "/partition"))) above.push_back(name);
    }
    return above;
  }

  void LookAtSuperblock(const DeviceId& superblock, const std::string& name, const DeviceId& device, pb::Disk& disk) {
    const MountEntry& mount = *mounts_.at(superblock);
    if (seen_superblocks_.insert({superblock, name}).second == false) return;
    std::string detail;
    pb::DiskUse::State state = StateOf(mount, detail);
    if (pb::DiskUse* use = Add(pb::DiskUse::FILE_SYSTEM, state, name, disk)) {
      use->set_name(Cut(mount.mount_point));
      use->set_fs_type(mount.fs_type);
      use->set_detail(detail);
    }
    // What is mounted read-only can be mounted for writing before the pause.
    const bool may_change = state == pb::DiskUse::READ_ONLY && mount.device == device;
    if (state == pb::DiskUse::CLEAN || may_change) report_.watched[device].insert(disk.name());
    for (const Swap& swap : swaps_) {
      if (swap.superblock != superblock) continue;
      pb::DiskUse* use = Add(pb::DiskUse::SWAP, pb::DiskUse::VOLATILE, name, disk);
      if (use != nullptr) use->set_name(Cut(swap.path));
    }
    // File systems in files of this one, through loop devices.
    for (const auto& [upper, lower] : facts_.survey.lies_on) {
      if (lower.contains(superblock) && mounts_.contains(upper)) {
        LookAtSuperblock(upper, name, device, disk);
      }
    }
  }

  pb::DiskUse::State StateOf(const MountEntry& mount, std::string& detail) const {
    if (facts_.frozen.contains(mount.device)) return pb::DiskUse::FROZEN;
    if (mount.read_only_superblock) return pb::DiskUse::READ_ONLY;
    if (auto clean = facts_.clean.find(mount.device); clean != facts_.clean.end()) {
      if (clean->second.empty()) return pb::DiskUse::CLEAN;
      detail = absl::StrCat("cannot freeze, and ", clean->second);
    } else if (facts_.foreign.contains(mount.device)) {
      detail = "is already frozen by somebody else, who may thaw it at any time";
    } else {
      detail = "was not frozen";
    }
    return pb::DiskUse::NOT_COVERED;
  }

  void LookAtUnused(const std::string& name, const DeviceId& device, pb::Disk& disk) {
    absl::StatusOr<bool> claimed = sources_.claimed(name);
    if (!claimed.ok()) {
      AddUnknown(name, absl::StrCat("whether the kernel uses it is not known: ", claimed.status().message()), disk);
    } else if (*claimed) {
      pb::DiskUse* use = Add(pb::DiskUse::CLAIMED, pb::DiskUse::NOT_COVERED, name, disk);
      if (use != nullptr) use->set_detail("is held by a part of the kernel that the agent does not know");
    } else {
      report_.watched[device].insert(disk.name());
    }
  }

  const KernelDisks::Sources& sources_;
  const DiskFacts& facts_;
  DiskReport& report_;
  const std::vector<Swap> swaps_;
  std::map<DeviceId, const MountEntry*> mounts_;      // The first mount of each superblock.
  std::map<DeviceId, std::set<DeviceId>> on_device_;  // Block device -> superblocks.
  std::set<std::string> seen_nodes_;                  // Of this disk.
  std::set<std::pair<DeviceId, std::string>> seen_superblocks_;
  bool stacked_ = false;  // This disk has something that is made of it, other than partitions.
  int all_uses_ = 0;
};

}  // namespace

bool KernelDisks::Sources::HasHardware(const std::string& directory) {
  return PathExists(JoinPath(directory, "device"));
}

absl::StatusOr<bool> KernelDisks::Sources::AskForClaim(const std::string& name) {
  std::string node = JoinPath("/dev", name);
  return CallWithin<bool>(kClaimLimit, absl::StrCat("claim ", node), [node]() -> absl::StatusOr<bool> {
    // Opened for reading only, and closed at once: it claims the device for that moment, as blkid and fsck do.
    OwnedFd fd(::open(node.c_str(), O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC));
    if (fd.valid() || errno == ENOMEDIUM || errno == ENXIO) return false;
    if (errno == EBUSY) return true;
    return ErrnoStatus(errno, absl::StrCat("open ", node));
  });
}

DiskReport KernelDisks::Describe(const DiskFacts& facts) {
  DiskReport report;
  Looker looker(sources_, facts, report);
  std::string all = JoinPath(sources_.sysfs, "block");
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(all);
  if (!names.ok()) {
    report.unknown = std::string(names.status().message());
    return report;
  }
  for (const std::string& name : *names) {
    // Without a number it is a path to a disk that has another name (NVMe multipath).
    if (!sources_.is_disk(JoinPath(all, name)) || !PathExists(absl::StrCat(all, "/", name, "/dev"))) continue;
    if (report.disks.size() == kMaxDisks) {
      report.unknown = absl::StrCat("the guest has more than ", kMaxDisks, " disks");
      break;
    }
    report.disks.push_back(looker.Look(name));
  }
  return report;
}

std::optional<uint64_t> KernelDisks::Writes(const DeviceId& device) {
  std::string directory = absl::StrCat(sources_.sysfs, "/dev/block/", device.ToString());
  std::string queue = JoinPath(directory, PathExists(JoinPath(directory, "partition")) ? "../queue" : "queue");
  if (ReadAttribute(JoinPath(queue, "iostats")) != "1") return std::nullopt;
  std::string stat = ReadAttribute(JoinPath(directory, "stat"));
  std::string inflight = ReadAttribute(JoinPath(directory, "inflight"));
  std::vector<absl::string_view> counts = absl::StrSplit(stat, ' ', absl::SkipEmpty());
  std::vector<absl::string_view> under_way = absl::StrSplit(inflight, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  uint64_t writes = 0, discards = 0, writing = 0;
  if (counts.size() <= kWriteField || !absl::SimpleAtoi(counts[kWriteField], &writes)) return std::nullopt;
  if (counts.size() > kDiscardField && !absl::SimpleAtoi(counts[kDiscardField], &discards)) return std::nullopt;
  if (under_way.size() != 2 || !absl::SimpleAtoi(under_way[1], &writing) || writing != 0) return std::nullopt;
  return writes + discards;
}

}  // namespace still::agent
