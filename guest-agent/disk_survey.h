// What writes to each of the guest's disks: itself, its partitions, and what is stacked on those, as sysfs shows it.
// docs/guest-agent.md, "What writes to each disk", has the rules.
//
// It claims too little rather than too much: what is used in a way that is not known is NOT_COVERED.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/status.h"
#include "guest-agent/freezer.h"
#include "guest-agent/open_files.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

// What is known when the file systems are frozen.
struct DiskFacts {
  const MountSurvey& survey;  // Taken while frozen: what was mounted meanwhile is in it.
  const OpenForWriting& open;
  std::set<DeviceId> frozen;              // Superblocks.
  std::map<DeviceId, std::string> clean;  // Superblock -> why not; empty: it is.
  std::set<DeviceId> foreign;             // Superblocks that somebody else froze.
};

struct DiskReport {
  std::vector<pb::Disk> disks;
  std::string unknown;
  // Devices that nothing must write to before the thaw, because they are CLEAN, READ_ONLY or unused, and the disks that
  // they are on.
  std::map<DeviceId, std::set<std::string>> watched;
  // Likewise for devices under frozen file systems, and for whole disks that nothing may write to. That they are quiet is
  // known without a count; the count finds who opens them and writes past what is frozen.
  std::map<DeviceId, std::set<std::string>> watched_if_counted;
  struct Node {
    std::string name;             // "vda2"
    std::set<std::string> disks;  // That it is on.
  };
  std::map<DeviceId, Node> nodes;  // Every block device that was found.
};

// Of one disk, in a report.
inline constexpr int kMaxDiskUses = 256;

// The seam for tests: everything that looks at this machine's disks.
class Disks {
 public:
  virtual ~Disks() = default;
  virtual OpenForWriting FindOpen() = 0;
  // Not while file systems are frozen; open_files.h says why.
  virtual OpenForWriting FindMapped() = 0;
  virtual DiskReport Describe(const DiskFacts& facts) = 0;
  // How often this device was written to; nothing when that is not counted or a write is under way.
  virtual std::optional<uint64_t> Writes(const DeviceId& device) = 0;
};

class KernelDisks : public Disks {
 public:
  struct Sources {
    std::string sysfs = "/sys";  // Or a test's tree.
    std::string swaps = "/proc/swaps";
    // Whether a block device is a disk of the machine, and not made of others.
    std::function<bool(const std::string& directory)> is_disk = HasHardware;
    // Whether a part of the kernel holds the device for itself (O_EXCL). Asked only for what has no known use.
    std::function<absl::StatusOr<bool>(const std::string& name)> claimed = AskForClaim;

    static bool HasHardware(const std::string& directory);
    static absl::StatusOr<bool> AskForClaim(const std::string& name);
  };
  KernelDisks() : KernelDisks(Sources()) {}
  explicit KernelDisks(Sources sources) : sources_(std::move(sources)) {}

  OpenForWriting FindOpen() override { return FindOpenForWriting(); }
  OpenForWriting FindMapped() override { return FindMappedForWriting(); }
  DiskReport Describe(const DiskFacts& facts) override;
  std::optional<uint64_t> Writes(const DeviceId& device) override;

 private:
  const Sources sources_;
};

}  // namespace still::agent
