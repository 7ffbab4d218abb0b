#include "guest-agent/freeze_marker.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "guest-agent/kernel_freezer.h"

namespace still::agent {
namespace {

constexpr absl::string_view kFirstLine = "still-freeze 1";
constexpr size_t kMaxMarkerBytes = 4 << 20;

}  // namespace

absl::Status FreezeMarker::CheckOutside(const MountSurvey& survey, const FreezePlan& plan) const {
  std::string directory = std::filesystem::path(path_).parent_path().string();
  STILL_RETURN_IF_ERROR(MakeDirectories(directory, 0755));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(directory, O_RDONLY | O_DIRECTORY));
  STILL_ASSIGN_OR_RETURN(int mount_id, MountIdOf(fd.get()));
  auto mount = std::find_if(survey.mounts.begin(), survey.mounts.end(),
                            [mount_id](const MountEntry& entry) { return entry.mount_id == mount_id; });
  if (mount == survey.mounts.end()) return absl::OkStatus();
  for (const PlannedFileSystem& fs : plan.file_systems) {
    if (fs.device != mount->device) continue;
    return absl::FailedPreconditionError(absl::StrCat(directory, " lies on ", mount->mount_point, " (", fs.fs_type,
                                                      "), which is to be frozen: it must be on a tmpfs"));
  }
  return absl::OkStatus();
}

absl::Status FreezeMarker::Write(const std::vector<PlannedFileSystem::Mount>& mounts) const {
  std::string content = absl::StrCat(kFirstLine, "\n");
  for (const auto& mount : mounts) {
    absl::StrAppend(&content, mount.mount_id, " ", absl::CEscape(mount.mount_point), "\n");
  }
  return WriteFileAtomically(path_, content);
}

absl::Status FreezeMarker::Remove() const { return RemoveFile(path_); }

bool FreezeMarker::Exists() const { return PathExists(path_); }

absl::StatusOr<std::vector<PlannedFileSystem::Mount>> FreezeMarker::Read() const {
  STILL_ASSIGN_OR_RETURN(std::string content, ReadFile(path_, kMaxMarkerBytes));
  std::vector<absl::string_view> lines = absl::StrSplit(content, '\n', absl::SkipEmpty());
  if (lines.empty() || lines[0] != kFirstLine) return absl::DataLossError(absl::StrCat(path_, ": no freeze marker"));
  std::vector<PlannedFileSystem::Mount> mounts;
  for (absl::string_view line : absl::MakeConstSpan(lines).subspan(1)) {
    std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    PlannedFileSystem::Mount mount;
    if (!absl::SimpleAtoi(parts.first, &mount.mount_id) || !absl::CUnescape(parts.second, &mount.mount_point)) {
      return absl::DataLossError(absl::StrCat(path_, ": damaged"));
    }
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

}  // namespace still::agent
