// The kernel's mount table: /proc/self/mountinfo, as proc(5) describes it, parsed.
//
// Pure: text in, entries out, in the table's order. The text is bounded and treated as hostile (paths and device names
// are chosen by whoever may mount); fuzz target: tests/fuzz/guest-agent.
#pragma once

#include <compare>
#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::agent {

// Containers bring hundreds of mounts, not tens of thousands: what is longer is refused rather than worked through.
inline constexpr size_t kMaxMountTableBytes = 16u << 20;
inline constexpr size_t kMaxMounts = 65536;

struct DeviceId {
  unsigned major = 0;
  unsigned minor = 0;
  auto operator<=>(const DeviceId&) const = default;
  // Major 0: no block device of its own (tmpfs, proc, overlay, virtiofs, and btrfs, which spreads over several).
  bool anonymous() const { return major == 0; }
  std::string ToString() const;  // "254:0"
};

struct MountEntry {
  int mount_id = 0;
  int parent_id = 0;
  DeviceId device;  // Of the superblock: equal for bind mounts, and for all subvolumes of one btrfs.
  std::string root;
  std::string mount_point;
  std::string fs_type;
  std::string source;
  std::string super_options;
  bool read_only_superblock = false;  // A read-only *mount* of a writable superblock does not count.
  // Of a mount that only another mount namespace has: the path that reaches it from here, and a process there. Else empty.
  std::string open_path;
  std::string seen_by;
};

// INVALID_ARGUMENT names the line that is no mountinfo; RESOURCE_EXHAUSTED when a limit is exceeded.
absl::StatusOr<std::vector<MountEntry>> ParseMountTable(absl::string_view text);

// "\040" -> " ", as the kernel escapes space, tab, newline and backslash. Anything else is kept as it is.
std::string DecodeOctalEscapes(absl::string_view text);

// The value of `name` in "a,name=value,b"; empty when it is not there. Option values are escaped a second time in the
// table (overlayfs escapes ',' and ':' with a backslash); only the outer escapes are decoded here.
std::string MountOption(absl::string_view options, absl::string_view name);

}  // namespace still::agent
