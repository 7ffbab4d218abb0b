// What to freeze, in which order, and why not the rest: a pure function of the mount table.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "guest-agent/freezer.h"
#include "guest-agent/mount_table.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

struct PlannedFileSystem {
  struct Mount {
    int mount_id = 0;
    std::string mount_point;
    bool whole = false;     // Not a bind mount of a part, nor a subvolume.
    std::string open_path;  // As in MountEntry; empty: the mount point.
    std::string seen_by;
    const std::string& path() const { return open_path.empty() ? mount_point : open_path; }
  };
  DeviceId device;
  std::string fs_type;
  std::string device_name;    // "254:0", or the source where the device is anonymous.
  std::vector<Mount> mounts;  // Never empty. All reach the same superblock; the first that can be opened is used.
};

struct FreezePlan {
  std::vector<PlannedFileSystem> file_systems;  // In freezing order: thaw backwards.
  std::vector<pb::SkippedMount> skipped;        // In table order. Duplicates are known only after opening.
};

// `requested`: mount points, or empty for all. INVALID_ARGUMENT when one of them is no mount point. A requested overlay
// stands for the file system under its upper directory.
//
// Order: a file system before the ones it lies on, else the newest mount first, as the QEMU guest agent does it (mounts
// made later may lie on files of earlier ones).
absl::StatusOr<FreezePlan> MakeFreezePlan(const MountSurvey& survey, const std::vector<std::string>& requested);

// File systems that freeze although their device number is anonymous.
bool FreezesWithoutDevice(const MountEntry& mount);

// The mount a path lies on by the table's names alone: the last one made at its longest prefix. Null when there is
// none.
const MountEntry* MountOfPath(const std::vector<MountEntry>& mounts, absl::string_view path);

}  // namespace still::agent
