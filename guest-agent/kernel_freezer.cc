#include "guest-agent/kernel_freezer.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "guest-agent/block_topology.h"
#include "guest-agent/bounded_call.h"
#include "guest-agent/freeze_plan.h"

namespace still::agent {
namespace {

// A local file system answers in microseconds.
constexpr absl::Duration kOpenLimit = absl::Seconds(2);

class KernelHandle final : public FileSystemHandle {
 public:
  KernelHandle(OwnedFd fd, std::string mount_point) : fd_(std::move(fd)), mount_point_(std::move(mount_point)) {}

  absl::Status Sync() override {
    if (::syncfs(fd_.get()) != 0) return ErrnoStatus(errno, absl::StrCat("syncfs ", mount_point_));
    return absl::OkStatus();
  }
  int Freeze() override { return Control(FIFREEZE); }
  int Thaw() override { return Control(FITHAW); }

 private:
  int Control(unsigned long request) {
    int result;
    do {
      result = ::ioctl(fd_.get(), request, 0);
    } while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
  }

  OwnedFd fd_;
  std::string mount_point_;
};

absl::StatusOr<std::unique_ptr<FileSystemHandle>> OpenMount(int mount_id, const std::string& mount_point) {
  // O_PATH first: opening a bind-mounted device node or FIFO for real would have effects.
  STILL_ASSIGN_OR_RETURN(OwnedFd path, OpenFile(mount_point, O_PATH | O_NOFOLLOW));
  STILL_ASSIGN_OR_RETURN(int reached, MountIdOf(path.get()));
  if (reached != mount_id) return absl::NotFoundError(absl::StrCat(mount_point, ": covered by another mount"));
  struct stat status {};
  if (::fstat(path.get(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", mount_point));
  if (!S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode)) {
    return absl::NotFoundError(absl::StrCat(mount_point, ": neither directory nor file"));
  }
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(absl::StrCat("/proc/self/fd/", path.get()), O_RDONLY | O_NONBLOCK));
  return std::make_unique<KernelHandle>(std::move(fd), mount_point);
}

}  // namespace

absl::StatusOr<int> MountIdOf(int fd) {
  STILL_ASSIGN_OR_RETURN(std::string info, ReadFile(absl::StrCat("/proc/self/fdinfo/", fd), 64 << 10));
  for (absl::string_view line : absl::StrSplit(info, '\n')) {
    int id;
    if (absl::ConsumePrefix(&line, "mnt_id:") && absl::SimpleAtoi(line, &id)) return id;
  }
  return absl::InternalError("fdinfo names no mount");
}

absl::StatusOr<MountSurvey> KernelFreezer::Survey() {
  STILL_ASSIGN_OR_RETURN(std::string text, ReadFile("/proc/self/mountinfo", kMaxMountTableBytes));
  MountSurvey survey;
  STILL_ASSIGN_OR_RETURN(survey.mounts, ParseMountTable(text));
  AddOtherNamespaces(ReadOtherMountTables(), survey);
  BlockTopology topology = FindDependencies(survey.mounts);
  survey.lies_on = std::move(topology.lies_on);
  survey.unanswering = std::move(topology.unanswering);
  return survey;
}

void AddOtherNamespaces(OtherMountTables other, MountSurvey& survey) {
  std::set<DeviceId> known;
  for (const MountEntry& mount : survey.mounts) known.insert(mount.device);
  survey.incomplete = std::move(other.incomplete);
  for (OtherMounts& table : other.tables) {
    std::set<DeviceId> here;
    for (MountEntry& mount : table.mounts) {
      // What is on no disk is nobody's concern here, and there is much of it.
      if (known.contains(mount.device) || (mount.device.anonymous() && !FreezesWithoutDevice(mount))) continue;
      here.insert(mount.device);
      survey.mounts.push_back(std::move(mount));
    }
    if (!here.empty()) survey.roots.push_back(std::move(table.root));
    known.merge(here);
  }
}

absl::StatusOr<std::unique_ptr<FileSystemHandle>> KernelFreezer::Open(int mount_id, const std::string& path) {
  return CallWithin<std::unique_ptr<FileSystemHandle>>(kOpenLimit, absl::StrCat("open ", path),
                                                       [mount_id, path] { return OpenMount(mount_id, path); });
}

void KernelFreezer::PinMemory() {
  // Without it a page of ours that was reclaimed would be read back through a frozen file system: reading works, but it
  // may queue behind I/O that does not. What exists now is made resident (MCL_CURRENT), what is mapped later when it is
  // touched; one call with both flags would do the one or the other for both.
  if (::mlockall(MCL_CURRENT) != 0 || ::mlockall(MCL_FUTURE | MCL_ONFAULT) != 0) {
    LogWarning("cannot lock memory", {{"error", std::strerror(errno)}});
  }
}

}  // namespace still::agent
