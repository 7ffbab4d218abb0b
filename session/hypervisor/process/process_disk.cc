#include "session/hypervisor/process/process_disk.h"

#include <endian.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

constexpr uint64_t kCopyStep = 4 << 20;  // Between two looks at the clock.
constexpr absl::Duration kServerDeadline = absl::Seconds(10);
constexpr absl::Duration kServerRetry = absl::Milliseconds(5);

std::string DirectoryOf(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
}

absl::StatusOr<OwnedFd> NamelessFile(const std::string& directory) { return OpenFile(directory, O_RDWR | O_TMPFILE); }

absl::StatusOr<uint64_t> SizeOf(int fd, const std::string& path) {
  off_t size = ::lseek(fd, 0, SEEK_END);  // Block devices too, where stat(2) says 0.
  if (size < 0) return ErrnoStatus(errno, path);
  return static_cast<uint64_t>(size);
}

// QEMU, docs/interop/qcow2.txt: all numbers big-endian.
struct Qcow2Header {
  uint32_t magic;
  uint32_t version;
  uint64_t backing_file_offset;
  uint32_t backing_file_size;
  uint32_t cluster_bits;
  uint64_t size;
  uint32_t before_features[10];
  uint64_t incompatible_features;  // Version 3 only.
};
static_assert(sizeof(Qcow2Header) == 80);
constexpr uint32_t kQcow2Magic = 0x514649fb;
constexpr uint64_t kExternalDataFile = 1 << 2;

}  // namespace

std::string WhyNoReflink(const std::string& path) {
  absl::StatusOr<OwnedFd> source = OpenFile(path, O_RDONLY);
  if (!source.ok()) return std::string(source.status().message());
  absl::StatusOr<OwnedFd> clone = NamelessFile(DirectoryOf(path));
  if (!clone.ok()) return std::string(clone.status().message());
  if (::ioctl(clone->get(), FICLONE, source->get()) == 0) return "";
  return absl::StrCat(path, ": no clone can be made here (", std::strerror(errno), ")");
}

absl::StatusOr<uint64_t> ContentSize(const DiskConfig& disk, int fd) {
  STILL_ASSIGN_OR_RETURN(uint64_t file_size, SizeOf(fd, disk.path));
  if (disk.format == "raw") return file_size;
  Qcow2Header header{};
  STILL_RETURN_IF_ERROR(PReadExactly(fd, &header, sizeof header, 0, disk.path));
  if (be32toh(header.magic) != kQcow2Magic) {
    return absl::InvalidArgumentError(absl::StrCat("disk ", disk.path, " is not a qcow2 image"));
  }
  if (header.backing_file_offset != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("disk ", disk.path, " has a backing file, so that this file alone is not the disk"));
  }
  if (be32toh(header.version) >= 3 && (be64toh(header.incompatible_features) & kExternalDataFile) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("disk ", disk.path, " keeps its data in another file"));
  }
  return be64toh(header.size);
}

absl::Status ProcessDisks::Prepare() {
  for (const DiskConfig& config : configs_) {
    Disk& disk = disks_.emplace_back();
    disk.config = config;
    STILL_RETURN_IF_ERROR(Annotate(PrepareOne(disk), absl::StrCat("disk ", config.name)));
  }
  return absl::OkStatus();
}

absl::Status ProcessDisks::PrepareOne(Disk& disk) {
  const std::string& path = disk.config.path;
  STILL_ASSIGN_OR_RETURN(disk.source, OpenFile(path, O_RDONLY));
  STILL_ASSIGN_OR_RETURN(disk.file_size, SizeOf(disk.source.get(), path));
  STILL_ASSIGN_OR_RETURN(disk.content_size, ContentSize(disk.config, disk.source.get()));
  disk.reflink = WhyNoReflink(path).empty();
  // A clone of what is dirty waits until it is written; that is better done while the process runs.
  if (::fdatasync(disk.source.get()) != 0) return ErrnoStatus(errno, absl::StrCat("write ", path, " back"));
  STILL_ASSIGN_OR_RETURN(disk.pinned, NamelessFile(disk.reflink ? DirectoryOf(path) : directory_));
  return absl::OkStatus();
}

absl::Status ProcessDisks::Pin(absl::Duration end) {
  for (Disk& disk : disks_) {
    if (disk.config.read_only) continue;
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
    absl::Status pinned;
    if (!disk.reflink) {
      pinned = Copy(disk, end);
    } else if (::ioctl(disk.pinned.get(), FICLONE, disk.source.get()) != 0) {
      pinned = ErrnoStatus(errno, absl::StrCat("clone ", disk.config.path));
    }
    STILL_RETURN_IF_ERROR(Annotate(pinned, absl::StrCat("pin disk ", disk.config.name)));
  }
  return absl::OkStatus();
}

absl::Status ProcessDisks::Copy(Disk& disk, absl::Duration end) {
  int from = disk.source.get();
  int to = disk.pinned.get();
  STILL_ASSIGN_OR_RETURN(uint64_t size, SizeOf(from, disk.config.path));
  if (::ftruncate(to, static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "make the copy");
  std::string buffer(kCopyStep, '\0');
  uint64_t at = 0;
  while (at < size) {
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
    if (Clock::Real().Monotonic() > end) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the copy came to ", at >> 20, " of ", size >> 20,
          " MiB before the longest pause that is allowed was over; allow a longer one, or keep the disk on a "
          "file system with clones (btrfs, XFS)"));
    }
    off_t data = ::lseek(from, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // Nothing but a hole up to the end.
    if (data > 0) at = static_cast<uint64_t>(data);
    if (at >= size) break;
    off_t hole = ::lseek(from, static_cast<off_t>(at), SEEK_HOLE);
    uint64_t until = hole > 0 ? std::min(size, static_cast<uint64_t>(hole)) : size;
    uint64_t part = std::min(until - at, kCopyStep);
    STILL_RETURN_IF_ERROR(PReadExactly(from, buffer.data(), part, at, disk.config.path));
    STILL_RETURN_IF_ERROR(PWriteAll(to, buffer.data(), part, at, absl::StrCat("copy in ", directory_)));
    at += part;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PinnedDiskExport>> ProcessDisks::Export() {
  std::vector<PinnedDiskExport> exports;
  for (Disk& disk : disks_) {
    STILL_RETURN_IF_ERROR(Annotate(Serve(disk), absl::StrCat("serve disk ", disk.config.name)));
    exports.push_back({.name = disk.config.name,
                       .size = disk.content_size,
                       .nbd_socket = disk.socket,
                       .nbd_export = disk.config.name});
  }
  return exports;
}

absl::Status ProcessDisks::Serve(Disk& disk) {
  int file = disk.config.read_only ? disk.source.get() : disk.pinned.get();
  disk.socket = JoinPath(directory_, absl::StrCat("pin-", disk.config.name, ".sock"));
  STILL_RETURN_IF_ERROR(RemoveFile(disk.socket));
  ProcessOptions options{
      .argv = {"qemu-nbd", "--read-only", "--persistent", "--shared=16", absl::StrCat("--format=", disk.config.format),
               absl::StrCat("--socket=", disk.socket), absl::StrCat("--export-name=", disk.config.name),
               absl::StrCat("/proc/self/fd/", file)},
      .inherited_fds = {file},
      .end_with_parent = true};
  STILL_ASSIGN_OR_RETURN(disk.server, ChildProcess::Start(options));
  const absl::Duration deadline = Clock::Real().Monotonic() + kServerDeadline;
  for (;;) {
    absl::StatusOr<OwnedFd> connected = ConnectUnix(disk.socket);
    if (connected.ok()) return absl::OkStatus();
    if (disk.server->Wait(absl::ZeroDuration()).ok()) return absl::UnavailableError("qemu-nbd ended at once");
    if (Clock::Real().Monotonic() > deadline) return Annotate(connected.status(), "qemu-nbd does not answer");
    Clock::Real().Sleep(kServerRetry);
  }
}

absl::Status ProcessDisks::Release() {
  absl::Status result;
  for (Disk& disk : disks_) {
    disk.server.reset();  // Kills and reaps.
    if (!disk.socket.empty()) result = FirstError(result, RemoveFile(disk.socket));
  }
  disks_.clear();
  return result;
}

}  // namespace still::session
