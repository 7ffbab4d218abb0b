#include "guest-agent/open_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "guest-agent/mount_namespaces.h"

namespace still::agent {
namespace {

// A big database has tens of thousands; each costs about two microseconds.
constexpr size_t kMaxFiles = 262144;

void NoteFile(const std::string& link, const std::string& process, OpenForWriting& found) {
  struct stat mode {};
  // The link's own permissions are the descriptor's.
  if (::lstat(link.c_str(), &mode) != 0 || (mode.st_mode & S_IWUSR) == 0) return;
  struct statx target {};
  if (::statx(AT_FDCWD, link.c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &target) != 0) return;
  if (S_ISBLK(target.stx_mode)) {
    found.devices.try_emplace({target.stx_rdev_major, target.stx_rdev_minor}, process);
  } else if (S_ISREG(target.stx_mode)) {
    found.file_systems.try_emplace({target.stx_dev_major, target.stx_dev_minor}, process);
  }
}

}  // namespace

OpenForWriting FindOpenForWriting(const std::string& proc) {
  OpenForWriting found;
  bool truncated = false;
  size_t files = 0;
  for (const std::string& pid : ListProcesses(proc, truncated)) {
    std::string directory = absl::StrCat(proc, "/", pid, "/fd");
    // A process that has ended has nothing open; a kernel thread neither.
    std::vector<std::string> names = ListDirectory(directory).value_or(std::vector<std::string>());
    if (names.empty()) continue;
    files += names.size();
    if (files > kMaxFiles) {
      truncated = true;
      break;
    }
    std::string process = DescribeProcess(proc, pid);
    for (const std::string& name : names) NoteFile(JoinPath(directory, name), process, found);
  }
  if (truncated) found.incomplete = "more processes or open files than the agent looks at";
  return found;
}

}  // namespace still::agent
