#include "guest-agent/frozen_file_system.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace still::agent {
namespace {

// Each freeze is undone by one thaw; nobody stacks more than a few.
constexpr int kMaxThaws = 64;

void AddSkipped(pb::QuiesceResponse& response, const PlannedFileSystem& fs, const PlannedFileSystem::Mount& mount,
                pb::SkippedMount::Reason reason, std::string detail) {
  pb::SkippedMount& skipped = *response.add_skipped();
  skipped.set_mount_point(mount.mount_point);
  skipped.set_seen_by(mount.seen_by);
  skipped.set_fs_type(fs.fs_type);
  skipped.set_reason(reason);
  skipped.set_detail(std::move(detail));
}

}  // namespace

std::vector<FrozenFileSystem> OpenPlanned(Freezer& freezer, const FreezePlan& plan, pb::QuiesceResponse& response) {
  for (const pb::SkippedMount& skipped : plan.skipped) *response.add_skipped() = skipped;
  std::vector<FrozenFileSystem> opened;
  for (const PlannedFileSystem& fs : plan.file_systems) {
    const PlannedFileSystem::Mount* chosen = nullptr;
    for (const PlannedFileSystem::Mount& mount : fs.mounts) {
      if (chosen != nullptr) {
        AddSkipped(response, fs, mount, pb::SkippedMount::DUPLICATE,
                   absl::StrCat("same file system as ", chosen->mount_point));
        continue;
      }
      auto handle = freezer.Open(mount.mount_id, mount.path());
      if (!handle.ok()) {
        AddSkipped(
            response, fs, mount,
            absl::IsDeadlineExceeded(handle.status()) ? pb::SkippedMount::NO_ANSWER : pb::SkippedMount::UNREACHABLE,
            std::string(handle.status().message()));
        continue;
      }
      chosen = &mount;
      opened.push_back({*std::move(handle), fs.device, mount, {}});
      opened.back().mount.set_mount_point(mount.mount_point);
      opened.back().mount.set_fs_type(fs.fs_type);
      opened.back().mount.set_device(fs.device_name);
      opened.back().mount.set_seen_by(mount.seen_by);
    }
  }
  return opened;
}

ThawOutcome ThawCompletely(FileSystemHandle& handle) {
  ThawOutcome outcome;
  while (outcome.thaws < kMaxThaws) {
    int error = handle.Thaw();
    if (error == EINVAL) break;
    if (error != 0) {
      outcome.error = error;
      break;
    }
    ++outcome.thaws;
  }
  return outcome;
}

}  // namespace still::agent
