#include "tools/still/guest_image/guest_disk.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"

namespace still::cli {
namespace {

constexpr uint64_t kSector = 512;
constexpr absl::Duration kToolTimeout = absl::Seconds(30);
constexpr absl::Duration kStorageDaemonStart = absl::Seconds(30);
// A qcow2 image's metadata is written back at the end.
constexpr absl::Duration kStorageDaemonEnd = absl::Minutes(2);
constexpr absl::Duration kPoll = absl::Milliseconds(10);
constexpr size_t kMaxDaemonLog = 1 << 16;
#ifndef FUSE_SUPER_MAGIC
constexpr int64_t FUSE_SUPER_MAGIC = 0x65735546;
#endif

// QEMU marks what it does with an image by locks on single bytes (block/file-posix.c): permissions in use from 100 on,
// those it refuses others from 200 on. A write lock on all of them excludes every user, and is refused while there is
// one.
constexpr off_t kQemuLocksBegin = 100;
constexpr off_t kQemuLocksLength = 200;

absl::Status InUse(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(path, ": a running machine uses this image; stop it first"));
}

// "TYPE=ext4" and the like; empty when blkid knows nothing of it.
absl::StatusOr<std::string> ProbeTag(const std::string& path, uint64_t offset, const std::string& key) {
  STILL_ASSIGN_OR_RETURN(
      CommandOutput output,
      RunCommand({.argv = {"/usr/sbin/blkid", "--probe", "--output", "export", "--offset", absl::StrCat(offset), path}},
                 kToolTimeout));
  for (absl::string_view line : absl::StrSplit(output.stdout_text, '\n')) {
    if (absl::ConsumePrefix(&line, absl::StrCat(key, "="))) return std::string(line);
  }
  return std::string();
}

bool IsWritable(absl::string_view type) {
  for (absl::string_view known : {"ext2", "ext3", "ext4", "xfs", "btrfs"}) {
    if (type == known) return true;
  }
  return false;
}

absl::Status AddFileSystem(const std::string& path, uint64_t offset, uint64_t size,
                           std::vector<GuestFileSystem>& found) {
  STILL_ASSIGN_OR_RETURN(std::string type, ProbeTag(path, offset, "TYPE"));
  if (IsWritable(type)) found.push_back({.type = type, .offset = offset, .size = size});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestDisk>> GuestDisk::Open(const std::string& path, const std::string& format) {
  auto disk = std::unique_ptr<GuestDisk>(new GuestDisk());
  char* real = ::realpath(path.c_str(), nullptr);
  if (real == nullptr) return ErrnoStatus(errno, path);
  disk->path_ = real;
  std::free(real);
  if (format == "raw") {
    STILL_RETURN_IF_ERROR(disk->LockRaw());
  } else if (format == "qcow2") {
    STILL_RETURN_IF_ERROR(disk->ServeQcow2());
  } else {
    return absl::InvalidArgumentError(absl::StrCat("format ", format, ": use raw or qcow2"));
  }
  return disk;
}

GuestDisk::~GuestDisk() { (void)Close(); }

absl::Status GuestDisk::LockRaw() {
  STILL_ASSIGN_OR_RETURN(image_, OpenFile(path_, O_RDWR));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = kQemuLocksBegin;
  lock.l_len = kQemuLocksLength;
  if (::fcntl(image_.get(), F_OFD_SETLK, &lock) != 0) {
    return errno == EAGAIN || errno == EACCES ? InUse(path_) : ErrnoStatus(errno, absl::StrCat("lock ", path_));
  }
  raw_path_ = path_;
  return absl::OkStatus();
}

absl::Status GuestDisk::ServeQcow2() {
  char pattern[] = "/tmp/still-image-XXXXXX";
  if (::mkdtemp(pattern) == nullptr) return ErrnoStatus(errno, "mkdtemp in /tmp");
  directory_ = pattern;
  raw_path_ = JoinPath(directory_, "disk");
  // Options are joined with commas; QEMU has them doubled where they are meant.
  std::string quoted;
  for (char c : path_) absl::StrAppend(&quoted, c == ',' ? ",," : std::string(1, c));
  STILL_RETURN_IF_ERROR(OpenFile(raw_path_, O_RDWR | O_CREAT).status());
  STILL_ASSIGN_OR_RETURN(OwnedFd log, OpenFile(JoinPath(directory_, "log"), O_RDWR | O_CREAT));
  STILL_ASSIGN_OR_RETURN(
      ChildProcess server,
      ChildProcess::Start(
          {.argv = {"qemu-storage-daemon", "--blockdev", absl::StrCat("driver=file,node-name=file,filename=", quoted),
                    "--blockdev", "driver=qcow2,node-name=disk,file=file", "--export",
                    absl::StrCat("type=fuse,id=fuse,node-name=disk,writable=on,mountpoint=", raw_path_)},
           .stderr_fd = log.get(),
           .end_with_parent = true}));
  server_.emplace(std::move(server));
  return WaitUntilServed();
}

absl::Status GuestDisk::WaitUntilServed() {
  const absl::Duration deadline = Clock::Real().Monotonic() + kStorageDaemonStart;
  for (;;) {
    struct statfs status {};
    if (::statfs(raw_path_.c_str(), &status) == 0 && status.f_type == FUSE_SUPER_MAGIC) return absl::OkStatus();
    if (absl::StatusOr<ProcessExit> exit = server_->Wait(kPoll); exit.ok()) {
      server_.reset();
      absl::StatusOr<std::string> log = ReadFile(JoinPath(directory_, "log"), kMaxDaemonLog);
      const std::string text = log.ok() ? *log : "";
      if (absl::StrContains(text, "another process using")) return InUse(path_);
      return absl::InvalidArgumentError(absl::StrCat(path_, ": ", absl::StripSuffix(text, "\n")));
    }
    if (Clock::Real().Monotonic() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(path_, ": qemu-storage-daemon does not serve it"));
    }
  }
}

absl::StatusOr<std::vector<GuestFileSystem>> GuestDisk::FileSystems() const {
  std::vector<GuestFileSystem> found;
  STILL_ASSIGN_OR_RETURN(uint64_t size, FileSize(raw_path_));
  STILL_RETURN_IF_ERROR(AddFileSystem(raw_path_, 0, size, found));
  if (!found.empty()) return found;
  STILL_ASSIGN_OR_RETURN(
      CommandOutput output,
      RunCommand({.argv = {"/usr/bin/partx", "--raw", "--noheadings", "--output", "START,SECTORS", raw_path_}},
                 kToolTimeout));
  for (absl::string_view line : absl::StrSplit(output.stdout_text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> columns = absl::StrSplit(line, ' ', absl::SkipEmpty());
    uint64_t start = 0;
    uint64_t sectors = 0;
    if (columns.size() != 2 || !absl::SimpleAtoi(columns[0], &start) || !absl::SimpleAtoi(columns[1], &sectors))
      continue;
    // What a hostile table may say.
    if (start > size / kSector || sectors > size / kSector - start) continue;
    STILL_RETURN_IF_ERROR(AddFileSystem(raw_path_, start * kSector, sectors * kSector, found));
  }
  return found;
}

absl::Status GuestDisk::Close() {
  absl::Status result;
  if (image_.valid()) {
    if (::fsync(image_.get()) != 0) result = ErrnoStatus(errno, absl::StrCat("fsync ", path_));
    image_.Reset();
  }
  if (server_.has_value()) {
    result = FirstError(result, server_->Kill(SIGTERM));
    absl::StatusOr<ProcessExit> exit = server_->Wait(kStorageDaemonEnd);
    if (!exit.ok()) {
      result = FirstError(result, Annotate(exit.status(), "qemu-storage-daemon"));
    } else if (!exit->ok()) {
      result = FirstError(result, absl::InternalError(absl::StrCat("qemu-storage-daemon: ", exit->ToString())));
    }
    server_.reset();
  }
  if (!directory_.empty()) {
    // A server that was killed leaves its mount; else there is none any more.
    ::umount2(raw_path_.c_str(), MNT_DETACH);
    result = FirstError(result, RemoveTree(directory_));
    directory_.clear();
  }
  return result;
}

absl::Status CheckExtClean(const std::string& raw_path, const GuestFileSystem& file_system) {
  // Linux' documentation of ext4, "Super Block": at 1024; 0x38 magic, 0x3A state (1: unmounted, 2: errors), 0x60
  // incompatible features (4: the journal must be replayed).
  uint8_t block[1024];
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(raw_path, O_RDONLY));
  STILL_RETURN_IF_ERROR(PReadExactly(fd.get(), block, sizeof block, file_system.offset + 1024, raw_path));
  const unsigned magic = block[0x38] | block[0x39] << 8;
  const unsigned state = block[0x3a] | block[0x3b] << 8;
  if (magic != 0xef53) return absl::DataLossError(absl::StrCat(raw_path, ": no ext file system after all"));
  if ((state & 3) == 1 && (block[0x60] & 4) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the guest was not shut down: its file system has to be recovered; start and shut it down once");
}

}  // namespace still::cli
