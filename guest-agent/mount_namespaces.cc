#include "guest-agent/mount_namespaces.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "guest-agent/bounded_call.h"

namespace still::agent {
namespace {

// A host of containers has hundreds.
constexpr size_t kMaxTables = 1024;
constexpr absl::Duration kRootLimit = absl::Seconds(2);

std::string ReadLink(const std::string& path) {
  char target[4096];
  ssize_t size = ::readlink(path.c_str(), target, sizeof target);
  return size < 0 ? "" : std::string(target, static_cast<size_t>(size));
}

// Its table and its root, when it is still the same process in the same place.
absl::StatusOr<OtherMounts> ReadTable(const std::string& directory, const std::string& place) {
  std::string root_path = JoinPath(directory, "root");
  OtherMounts other;
  STILL_ASSIGN_OR_RETURN(other.root, CallWithin<OwnedFd>(kRootLimit, absl::StrCat("open ", root_path),
                                                         [root_path] { return OpenFile(root_path, O_PATH); }));
  STILL_ASSIGN_OR_RETURN(std::string text, ReadFile(JoinPath(directory, "mountinfo"), kMaxMountTableBytes));
  STILL_ASSIGN_OR_RETURN(other.mounts, ParseMountTable(text));
  if (ReadLink(JoinPath(directory, "ns/mnt")) != place) return absl::NotFoundError("the process has ended");
  return other;
}

}  // namespace

std::string DescribeProcess(const std::string& proc, const std::string& pid) {
  std::string name = ReadFile(absl::StrCat(proc, "/", pid, "/comm"), 256).value_or("?");
  absl::StripAsciiWhitespace(&name);
  for (char& c : name) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) c = '?';
  }
  return absl::StrCat(name, " (", pid, ")");
}

std::vector<std::string> ListProcesses(const std::string& proc, bool& truncated) {
  std::vector<std::string> processes = ListDirectory(proc).value_or(std::vector<std::string>());
  std::erase_if(processes, [](const std::string& name) {
    return !std::all_of(name.begin(), name.end(), [](unsigned char c) { return absl::ascii_isdigit(c); });
  });
  truncated = processes.size() > kMaxProcesses;
  if (truncated) processes.resize(kMaxProcesses);
  return processes;
}

OtherMountTables ReadOtherMountTables(const std::string& proc) {
  OtherMountTables result;
  bool truncated = false;
  const std::string own = ReadLink(absl::StrCat(proc, "/self/ns/mnt"));
  std::set<std::pair<std::string, std::string>> seen;
  for (const std::string& pid : ListProcesses(proc, truncated)) {
    std::string directory = JoinPath(proc, pid);
    std::string place = ReadLink(JoinPath(directory, "ns/mnt"));
    if (place.empty() || place == own) continue;
    // A process that has changed its root sees only what lies below it.
    std::pair<std::string, std::string> key(place, ReadLink(JoinPath(directory, "root")));
    if (seen.contains(key)) continue;
    if (result.tables.size() == kMaxTables) {
      result.incomplete = absl::StrCat("the guest has more than ", kMaxTables, " mount namespaces");
      break;
    }
    absl::StatusOr<OtherMounts> other = ReadTable(directory, place);
    if (absl::IsNotFound(other.status())) continue;  // Ended; another process may be in the same namespace.
    seen.insert(std::move(key));
    if (!other.ok()) {
      result.incomplete = absl::StrCat("the mounts of ", DescribeProcess(proc, pid), ": ", other.status().message());
      continue;
    }
    std::string seen_by = DescribeProcess(proc, pid);
    for (MountEntry& mount : other->mounts) {
      mount.seen_by = seen_by;
      mount.open_path = absl::StrCat("/proc/self/fd/", other->root.get(), mount.mount_point);
    }
    result.tables.push_back(*std::move(other));
  }
  if (truncated) result.incomplete = absl::StrCat("the guest has more than ", kMaxProcesses, " processes");
  return result;
}

}  // namespace still::agent
