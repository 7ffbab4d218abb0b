#include "guest-agent/freeze_marker.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "guest-agent/kernel_freezer.h"

namespace still::agent {
namespace {

constexpr absl::string_view kMagic = "still-freeze 1 ";
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

absl::Status FreezeMarker::Write(const MarkedFreeze& freeze) const {
  std::string content = absl::StrCat(kMagic, absl::CEscape(freeze.token), "\n");
  for (const auto& mount : freeze.mounts) {
    absl::StrAppend(&content, mount.mount_id, " ", absl::CEscape(mount.mount_point), "\n");
  }
  return WriteFileAtomically(path_, content);
}

absl::Status FreezeMarker::Remove() const { return RemoveFile(path_); }

bool FreezeMarker::Exists() const { return PathExists(path_); }

absl::StatusOr<MarkedFreeze> FreezeMarker::Read() const {
  STILL_ASSIGN_OR_RETURN(std::string content, ReadFile(path_, kMaxMarkerBytes));
  const absl::Status damaged = absl::DataLossError(absl::StrCat(path_, ": not a freeze marker"));
  if (!absl::EndsWith(content, "\n")) return damaged;
  std::vector<absl::string_view> lines = absl::StrSplit(content, '\n', absl::SkipEmpty());
  MarkedFreeze freeze;
  if (lines.empty() || !absl::ConsumePrefix(&lines[0], kMagic) || !absl::CUnescape(lines[0], &freeze.token)) {
    return damaged;
  }
  for (absl::string_view line : absl::MakeConstSpan(lines).subspan(1)) {
    std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    PlannedFileSystem::Mount mount;
    if (!absl::SimpleAtoi(parts.first, &mount.mount_id) || !absl::CUnescape(parts.second, &mount.mount_point)) {
      return damaged;
    }
    freeze.mounts.push_back(std::move(mount));
  }
  return freeze;
}

}  // namespace still::agent
