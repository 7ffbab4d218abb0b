#include <fcntl.h>
#include <linux/loop.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/log.h"
#include "tools/still/guest_image/guest_root.h"

namespace still::cli {
namespace {

constexpr int kLoopAttempts = 16;
constexpr size_t kMaxRead = 1 << 20;
constexpr char kTemporary[] = ".still-agent.new";

// Detaches itself when its last user is gone: we, or the mount.
absl::StatusOr<std::pair<OwnedFd, std::string>> AttachLoop(const std::string& file, const GuestFileSystem& part,
                                                           bool read_only) {
  STILL_ASSIGN_OR_RETURN(OwnedFd backing, OpenFile(file, read_only ? O_RDONLY : O_RDWR));
  STILL_ASSIGN_OR_RETURN(OwnedFd control, OpenFile("/dev/loop-control", O_RDWR));
  for (int attempt = 0; attempt < kLoopAttempts; ++attempt) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return ErrnoStatus(errno, "find a free loop device");
    const std::string path = absl::StrCat("/dev/loop", number);
    STILL_ASSIGN_OR_RETURN(OwnedFd loop, OpenFile(path, read_only ? O_RDONLY : O_RDWR));
    loop_config config{};
    config.fd = static_cast<__u32>(backing.get());
    config.info.lo_offset = part.offset;
    config.info.lo_sizelimit = part.size;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (read_only ? LO_FLAGS_READ_ONLY : 0);
    if (::ioctl(loop.get(), LOOP_CONFIGURE, &config) == 0) return std::make_pair(std::move(loop), path);
    // Somebody else was faster.
    if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("attach ", file, " to ", path));
  }
  return absl::UnavailableError("no loop device stayed free");
}

// The directory above `path`, without the slash, and the last name.
std::pair<std::string, std::string> SplitPath(const std::string& path) {
  const size_t slash = path.rfind('/');
  return {path.substr(0, slash), path.substr(slash + 1)};
}

class MountedRoot final : public GuestRoot {
 public:
  // `options`: of the file system, as mount(8) has them behind -o.
  static absl::StatusOr<std::unique_ptr<MountedRoot>> Mount(const std::string& file, const GuestFileSystem& part,
                                                            const std::string& options, bool read_only) {
    auto root = std::make_unique<MountedRoot>();
    STILL_ASSIGN_OR_RETURN(auto loop, AttachLoop(file, part, read_only));
    char pattern[] = "/tmp/still-root-XXXXXX";
    if (::mkdtemp(pattern) == nullptr) return ErrnoStatus(errno, "mkdtemp in /tmp");
    root->directory_ = pattern;
    const unsigned long flags = MS_NODEV | MS_NOSUID | MS_NOEXEC | (read_only ? MS_RDONLY : 0);
    if (::mount(loop.second.c_str(), pattern, part.type.c_str(), flags, options.empty() ? nullptr : options.c_str())) {
      // What has a journal to replay cannot be mounted from a device that cannot be written.
      if (errno == EROFS) {
        return absl::FailedPreconditionError(
            "the guest was not shut down: its file system has to be recovered; start and shut it down once");
      }
      return ErrnoStatus(errno, absl::StrCat("mount the guest's ", part.type));
    }
    root->mounted_ = true;
    STILL_ASSIGN_OR_RETURN(root->root_, OpenFile(pattern, O_PATH | O_DIRECTORY));
    return root;
  }
  ~MountedRoot() override { (void)Unmount(); }

  bool Exists(const std::string& path) override { return Open(path, O_PATH | O_NOFOLLOW).ok(); }

  absl::StatusOr<std::string> Read(const std::string& path) override {
    STILL_ASSIGN_OR_RETURN(OwnedFd fd, Open(path, O_RDONLY | O_NONBLOCK));
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("guest's ", path));
    if (!S_ISREG(status.st_mode) || static_cast<size_t>(status.st_size) > kMaxRead) {
      return absl::FailedPreconditionError(absl::StrCat("guest's ", path, ": not a file, or too large"));
    }
    std::string content(static_cast<size_t>(status.st_size), '\0');
    STILL_RETURN_IF_ERROR(ReadExactly(fd.get(), content.data(), content.size(), path));
    return content;
  }

  absl::Status Write(const std::string& path, absl::string_view content, mode_t mode) override {
    const auto [directory, name] = SplitPath(path);
    STILL_RETURN_IF_ERROR(MakeDirectory(directory));
    STILL_ASSIGN_OR_RETURN(OwnedFd in, Open(directory, O_PATH | O_DIRECTORY));
    ::unlinkat(in.get(), kTemporary, 0);  // Of a run that was killed.
    OwnedFd file(::openat(in.get(), kTemporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
    if (!file.valid()) return ErrnoStatus(errno, absl::StrCat("guest's ", path));
    absl::Status status = WriteAll(file.get(), content.data(), content.size(), path);
    if (status.ok() && (::fchmod(file.get(), mode) != 0 || ::fsync(file.get()) != 0 ||
                        ::renameat(in.get(), kTemporary, in.get(), name.c_str()) != 0)) {
      status = ErrnoStatus(errno, absl::StrCat("guest's ", path));
    }
    if (!status.ok()) ::unlinkat(in.get(), kTemporary, 0);
    return status;
  }

  absl::Status Link(const std::string& path, const std::string& target) override {
    const auto [directory, name] = SplitPath(path);
    STILL_RETURN_IF_ERROR(MakeDirectory(directory));
    STILL_ASSIGN_OR_RETURN(OwnedFd in, Open(directory, O_PATH | O_DIRECTORY));
    ::unlinkat(in.get(), name.c_str(), 0);
    if (::symlinkat(target.c_str(), in.get(), name.c_str()) == 0) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("guest's ", path));
  }

  absl::Status MakeDirectory(const std::string& path) override {
    std::string so_far;
    for (absl::string_view name : absl::StrSplit(path, '/', absl::SkipEmpty())) {
      STILL_ASSIGN_OR_RETURN(OwnedFd in, Open(so_far, O_PATH | O_DIRECTORY));
      absl::StrAppend(&so_far, "/", name);
      if (::mkdirat(in.get(), std::string(name).c_str(), 0755) != 0 && errno != EEXIST) {
        return ErrnoStatus(errno, absl::StrCat("guest's ", so_far));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    absl::StatusOr<OwnedFd> top = Open("", O_RDONLY | O_DIRECTORY);
    absl::Status synced = top.status();
    if (top.ok() && ::syncfs(top->get()) != 0) synced = ErrnoStatus(errno, "write the guest's file system back");
    if (top.ok()) top->Reset();
    return FirstError(synced, Unmount());
  }

 private:
  // As the guest would see it after chroot(2): links lead nowhere else (openat2(2), RESOLVE_IN_ROOT).
  absl::StatusOr<OwnedFd> Open(const std::string& path, int flags) const {
    open_how how{};
    how.flags = static_cast<__u64>(flags | O_CLOEXEC);
    how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
    const std::string name = path.empty() ? "." : path;
    OwnedFd fd(static_cast<int>(::syscall(SYS_openat2, root_.get(), name.c_str(), &how, sizeof how)));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("guest's ", path));
    return fd;
  }

  absl::Status Unmount() {
    absl::Status status;
    root_.Reset();
    if (mounted_ && ::umount2(directory_.c_str(), 0) != 0)
      status = ErrnoStatus(errno, "unmount the guest's file system");
    mounted_ = mounted_ && !status.ok();
    if (!directory_.empty() && !mounted_) {
      ::rmdir(directory_.c_str());
      directory_.clear();
    }
    return status;
  }

  std::string directory_;
  bool mounted_ = false;
  OwnedFd root_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GuestRoot>> MountGuestRoot(const GuestDisk& disk) {
  STILL_ASSIGN_OR_RETURN(std::vector<GuestFileSystem> parts, disk.FileSystems());
  for (const GuestFileSystem& part : parts) {
    // Distributions that keep their root in a subvolume name it like this.
    std::vector<std::string> options = {""};
    if (part.type == "btrfs") options.insert(options.end(), {"subvol=@", "subvol=root", "subvol=@rootfs"});
    for (const std::string& option : options) {
      absl::StatusOr<std::unique_ptr<MountedRoot>> looked = MountedRoot::Mount(disk.raw_path(), part, option, true);
      if (absl::IsFailedPrecondition(looked.status())) return looked.status();
      if (!looked.ok()) {  // No such subvolume, or a file system that this kernel does not know.
        LogDebug("not mounted", {{"type", part.type}, {"error", looked.status().ToString()}});
        continue;
      }
      const bool root = LooksLikeRoot(**looked);
      STILL_RETURN_IF_ERROR((*looked)->Commit());
      if (!root) continue;
      if (part.type.rfind("ext", 0) == 0) STILL_RETURN_IF_ERROR(CheckExtClean(disk.raw_path(), part));
      return MountedRoot::Mount(disk.raw_path(), part, option, false);
    }
  }
  return NoRootFound(disk);
}

}  // namespace still::cli
