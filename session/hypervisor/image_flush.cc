#include "session/hypervisor/image_flush.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/fd.h"
#include "base/file.h"

namespace still::session {
namespace {

absl::Status FlushOne(const DiskConfig& disk) {
  STILL_ASSIGN_OR_RETURN(OwnedFd image, OpenFile(disk.path, O_RDONLY));
  if (::fdatasync(image.get()) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("write ", disk.path, " back"));
}

}  // namespace

absl::Status FlushImages(const std::vector<DiskConfig>& disks, absl::Duration limit) {
  struct Work {
    std::vector<DiskConfig> disks;
    absl::Status status;  // Written before `done`.
    absl::Notification done;
  };
  auto work = std::make_shared<Work>();  // Shared with the thread, which may take longer than we wait.
  for (const DiskConfig& disk : disks) {
    if (!disk.read_only) work->disks.push_back(disk);
  }
  std::thread([work] {
    for (const DiskConfig& disk : work->disks) work->status = FirstError(work->status, FlushOne(disk));
    work->done.Notify();
  }).detach();
  if (work->done.WaitForNotificationWithTimeout(limit)) return work->status;
  return absl::DeadlineExceededError(
      "the disk images are not written back yet, and to stop the machine waits for that");
}

}  // namespace still::session
