#include "base/file_system.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/move_into_place.h"

namespace still {
namespace {

// Write-back is begun after so many bytes: the final sync then waits for the last of them only, and a long write does
// not fill the page cache with dirty pages that stall everybody else at once.
constexpr uint64_t kWriteBackBytes = 8 << 20;

class RealWritableFile final : public WritableFile {
 public:
  RealWritableFile(OwnedFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::Status Append(absl::string_view data) override {
    STILL_RETURN_IF_ERROR(WriteAll(fd_.get(), data.data(), data.size(), path_));
    size_ += data.size();
    if (size_ - write_back_begun_ >= kWriteBackBytes) StartSync();
    return absl::OkStatus();
  }

  void StartSync() override {
    // Failing is safe: Sync() writes whatever was not begun here and reports what went wrong.
    (void)::sync_file_range(fd_.get(), static_cast<off64_t>(write_back_begun_),
                            static_cast<off64_t>(size_ - write_back_begun_), SYNC_FILE_RANGE_WRITE);
    write_back_begun_ = size_;
  }

  absl::Status Sync() override {
    if (::fsync(fd_.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", path_));
    return absl::OkStatus();
  }

 private:
  OwnedFd fd_;
  const std::string path_;
  uint64_t size_ = 0;
  uint64_t write_back_begun_ = 0;
};

// Waits for the lock. True when the file still has a name.
absl::StatusOr<bool> LockAndCheckNamed(int fd, int operation, const std::string& path) {
  int result;
  do {
    result = ::flock(fd, operation);
  } while (result != 0 && errno == EINTR);
  if (result != 0) return ErrnoStatus(errno, absl::StrCat("flock ", path));
  struct stat status {};
  if (::fstat(fd, &status) != 0) return ErrnoStatus(errno, absl::StrCat("fstat ", path));
  return status.st_nlink > 0;
}

// File systems whose inodes only this kernel changes (statfs(2); linux/magic.h, and the file systems' own headers for what is
// not in it). What is not among them may be anybody's.
bool IsLocal(uint32_t type) {
  constexpr uint32_t kLocal[] = {
      EXT4_SUPER_MAGIC,  // ext2 and ext3, too.
      XFS_SUPER_MAGIC,
      BTRFS_SUPER_MAGIC,
      F2FS_SUPER_MAGIC,
      TMPFS_MAGIC,
      OVERLAYFS_SUPER_MAGIC,  // Its lower layers may not be changed while it is mounted.
      0x2fc12fc1,             // ZFS.
      0xca451a4e,             // bcachefs.
  };
  return std::find(std::begin(kLocal), std::end(kLocal), type) != std::end(kLocal);
}

class RealFileSystem final : public FileSystem {
 public:
  // "Attended" is an flock(2) on the open file: the kernel drops it when the writer dies, however it dies.
  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    for (;;) {
      STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
      STILL_ASSIGN_OR_RETURN(bool named, LockAndCheckNamed(fd.get(), LOCK_EX, path));
      // A sweep may have found the file in the instant between open and flock and removed it: make it again.
      if (named) return std::make_unique<RealWritableFile>(std::move(fd), path);
    }
  }

  absl::Status ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) override {
    STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY | O_NOFOLLOW));
    absl::Status status = PReadExactly(fd.get(), out.data(), out.size(), offset, path);
    if (status.code() != absl::StatusCode::kDataLoss) return status;
    struct stat info {};
    if (::fstat(fd.get(), &info) == 0 && offset + out.size() > static_cast<uint64_t>(info.st_size)) {
      return absl::OutOfRangeError(status.message());
    }
    return status;  // A media error, not an early end.
  }

  absl::StatusOr<FileInfo> Stat(const std::string& path) override {
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
    return FileInfo{.size = static_cast<uint64_t>(status.st_size),
                    .modified = absl::TimeFromTimespec(status.st_mtim),
                    .is_directory = S_ISDIR(status.st_mode)};
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    return ListDirectory(directory);
  }

  absl::StatusOr<std::optional<DirectoryStamp>> StampDirectory(const std::string& directory) override {
    DirectoryStamp stamp{.asked = absl::Now()};
    struct statfs of {};
    if (::statfs(directory.c_str(), &of) != 0) return ErrnoStatus(errno, absl::StrCat("statfs ", directory));
    if (!IsLocal(static_cast<uint32_t>(of.f_type))) return std::nullopt;
    struct stat status {};
    if (::stat(directory.c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", directory));
    stamp.device = status.st_dev;
    stamp.inode = status.st_ino;
    stamp.modified = absl::TimeFromTimespec(status.st_mtim);
    stamp.changed = absl::TimeFromTimespec(status.st_ctim);
    return stamp;
  }

  absl::Status MakeDirectory(const std::string& path) override {
    if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return absl::OkStatus();
    return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  }

  absl::Status Rename(const std::string& from, const std::string& to, RenameMode mode) override {
    if (mode == RenameMode::kReplace) {
      if (::rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("rename ", from, " to ", to));
      return absl::OkStatus();
    }
    // A crash between the steps of its slow way leaves two names of one whole file, and the sweep removes the temporary one.
    return MoveIntoPlace(from, to);
  }

  absl::Status Remove(const std::string& path) override { return RemoveFile(path); }

  absl::StatusOr<bool> RemoveUnattended(const std::string& path) override {
    absl::StatusOr<OwnedFd> fd = OpenFile(path, O_RDWR | O_NOFOLLOW);
    if (absl::IsNotFound(fd.status())) return true;
    if (!fd.ok()) return fd.status();
    absl::StatusOr<bool> named = LockAndCheckNamed(fd->get(), LOCK_EX | LOCK_NB, path);
    if (absl::IsUnavailable(named.status())) return false;
    if (!named.ok()) return named.status();
    // Removed with the lock held: a writer that was about to lock it sees that its name is gone and starts over.
    if (*named) STILL_RETURN_IF_ERROR(RemoveFile(path));
    return true;
  }

  absl::Status SyncDirectory(const std::string& path) override { return still::SyncDirectory(path); }

  absl::StatusOr<uint64_t> AvailableBytes(const std::string& path) override {
    struct statvfs status {};
    if (::statvfs(path.c_str(), &status) != 0) return ErrnoStatus(errno, absl::StrCat("statvfs ", path));
    return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
  }
};

}  // namespace

FileSystem& FileSystem::Real() {
  static RealFileSystem* file_system = new RealFileSystem;
  return *file_system;
}

}  // namespace still
