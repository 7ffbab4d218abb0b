#include "snapshot/file_image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/absolute_path.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/names.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "snapshot/disk_drain.h"
#include "snapshot/export_place.h"
#include "snapshot/qcow2_writer.h"
#include "snapshot/scratch_directory.h"
#include "store/image/stream_size.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

constexpr char kImportedDisk[] = "vda";
constexpr absl::Duration kServerStart = absl::Seconds(10);
constexpr uint64_t kSectorBytes = 512;
constexpr size_t kPipePiece = 1 << 20;  // Whole blocks.

absl::Status CheckFormat(const std::string& format) {
  if (format == "raw" || format == "qcow2") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("format \"", format, "\" is not known; use raw or qcow2"));
}

// How long the disk is; nothing for what only its end can tell, like a pipe.
absl::StatusOr<std::optional<uint64_t>> DiskSize(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  if (S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode)) return std::nullopt;
  if (S_ISBLK(status.st_mode)) {
    uint64_t bytes = 0;
    if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return ErrnoStatus(errno, absl::StrCat("size of ", path));
    return bytes;
  }
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, S_ISDIR(status.st_mode) ? " is a directory" : " is a terminal or another device without an end",
        "; a disk is a file, a block device or a pipe"));
  }
  return static_cast<uint64_t>(status.st_size);
}

// As for a session's disks: what is refused there must not be found out when it is restored.
absl::Status CheckSectors(const std::string& path, uint64_t size) {
  if (size > 0 && size % kSectorBytes == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      size == 0 ? absl::StrCat(path, " is empty, and no disk")
                : absl::StrCat(path, " is no disk image: ", size, " bytes are not a number of sectors of 512"));
}

bool IsQcow2(absl::string_view begin) { return absl::StartsWith(begin, "QFI\xfb"); }

absl::Status CheckMagic(const ImportOptions& options, absl::string_view begin) {
  const bool is_qcow2 = IsQcow2(begin);
  if (is_qcow2 == (options.format == "qcow2")) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(options.path, is_qcow2
                                                                   ? " begins like a qcow2 image; say --format qcow2"
                                                                   : " is not a qcow2 image; say --format raw"));
}

// All of `buffer`, or what there is before the end.
absl::StatusOr<size_t> ReadUpTo(int fd, std::vector<char>& buffer, const std::string& what) {
  size_t size = 0;
  while (size < buffer.size()) {
    const ssize_t got = ::read(fd, buffer.data() + size, buffer.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", what));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  return size;
}

absl::Status DrainPipe(const ImportOptions& options, int fd, store::SnapshotWriter& writer) {
  if (options.format != "raw") {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path, ": a qcow2 image is not read from its beginning to its end, as a pipe is; store it from a file"));
  }
  STILL_ASSIGN_OR_RETURN(
      std::unique_ptr<store::ImageWriter> image,
      writer.BeginImage({.name = kImportedDisk, .role = Image::ROLE_DISK, .size = store::kSizeOfStream}));
  std::vector<char> buffer(kPipePiece);
  uint64_t done = 0;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(const size_t got, ReadUpTo(fd, buffer, options.path));
    if (done == 0) STILL_RETURN_IF_ERROR(CheckMagic(options, {buffer.data(), got}));
    STILL_RETURN_IF_ERROR(image->Write(done, {buffer.data(), got}));
    done += got;
    options.progress({.stage = "import", .done = done});
    if (got < buffer.size()) break;
  }
  STILL_RETURN_IF_ERROR(CheckSectors(options.path, done));
  return image->Finish();
}

// A qcow2 file is read by QEMU's own tools, over NBD: its format is not ours to parse.
absl::Status DrainQcow2(const ImportOptions& options, store::SnapshotWriter& writer, Image& kept) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ScratchDirectory> scratch, ScratchDirectory::Make());
  STILL_ASSIGN_OR_RETURN(const std::string path, AbsolutePath(options.path));
  NbdSource source{.socket = JoinPath(scratch->path(), "nbd.sock"), .export_name = "import"};
  STILL_ASSIGN_OR_RETURN(OwnedFd errors, OpenFile(JoinPath(scratch->path(), "log"), O_RDWR | O_CREAT));
  STILL_ASSIGN_OR_RETURN(ChildProcess server,
                         ChildProcess::Start({.argv = {"qemu-nbd", "--read-only", "--format=qcow2", "--persistent",
                                                       "--shared=2", absl::StrCat("--socket=", source.socket),
                                                       "--export-name=import", "--cache=none", "--aio=threads", path},
                                              .stderr_fd = errors.get(),
                                              .end_with_parent = true}));
  const absl::Duration deadline = Clock::Real().Monotonic() + kServerStart;
  absl::StatusOr<uint64_t> size = NbdSize(source);
  while (!size.ok() && Clock::Real().Monotonic() < deadline) {
    if (server.Wait(absl::Milliseconds(20)).ok()) {
      absl::StatusOr<std::string> text = ReadFile(JoinPath(scratch->path(), "log"), 4096);
      return absl::InvalidArgumentError(
          absl::StrCat("import ", options.path, ": ", text.ok() ? absl::StripSuffix(*text, "\n") : "qemu-nbd failed"));
    }
    size = NbdSize(source);
  }
  if (!size.ok()) return size.status();
  STILL_RETURN_IF_ERROR(CheckSectors(options.path, *size));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image,
                         writer.BeginImage({.name = kImportedDisk, .role = Image::ROLE_DISK, .size = *size}));
  STILL_ASSIGN_OR_RETURN(DrainedDisk drained, DrainDisk(source, *size, *image, [&](uint64_t done) {
                           options.progress({.stage = "import", .done = done, .total = *size});
                         }));
  kept.set_bytes_read(drained.bytes_read);
  return image->Finish();
}

absl::StatusOr<std::string> PickImage(const manifestpb::Snapshot& snapshot, const std::string& wanted) {
  std::vector<std::string> disks;
  for (const Image& image : snapshot.images()) {
    if (image.name() == wanted) return wanted;
    if (image.role() == Image::ROLE_DISK) disks.push_back(image.name());
  }
  std::string have = disks.empty() ? "it has no disk" : absl::StrCat("its disks are: ", absl::StrJoin(disks, ", "));
  if (!wanted.empty()) return absl::NotFoundError(absl::StrCat("no image \"", wanted, "\" in the snapshot; ", have));
  if (disks.size() == 1) return disks[0];
  return absl::InvalidArgumentError(absl::StrCat("name one image; ", have));
}

absl::Status StoreOpenFile(store::SnapshotWriter& writer, int fd, uint64_t size, store::ImageOptions options) {
  options.size = size;
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image, writer.BeginImage(options));
  STILL_RETURN_IF_ERROR(image->WriteFromFile(fd, 0, 0, size));
  return image->Finish();
}

absl::StatusOr<std::string> SessionName(const ImportOptions& options) {
  std::string session = options.session;
  if (session.empty() && options.path == kStandardInput) session = "stdin";
  if (session.empty()) session = EscapeName(std::filesystem::path(options.path).filename().string());
  absl::Status good = CheckNewName("session", session);
  if (good.ok()) return session;
  const char* advice = options.session.empty() ? " (the file is called so; say --session NAME)" : "";
  return absl::InvalidArgumentError(absl::StrCat(good.message(), advice));
}

absl::StatusOr<OwnedFd> OpenSource(const ImportOptions& options) {
  if (options.path != kStandardInput) return OpenFile(options.path, O_RDONLY);
  OwnedFd fd(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "standard input");
  return fd;
}

absl::Status DrainSource(const ImportOptions& options, int fd, store::SnapshotWriter& writer, Image& kept) {
  STILL_ASSIGN_OR_RETURN(const std::optional<uint64_t> size, DiskSize(fd, options.path));
  // Of a file that somebody has begun to read, standard input is the rest.
  if (!size.has_value() || (options.path == kStandardInput && ::lseek(fd, 0, SEEK_CUR) != 0)) {
    return DrainPipe(options, fd, writer);
  }
  char magic[4] = {};
  const ssize_t got = ::pread(fd, magic, sizeof magic, 0);
  STILL_RETURN_IF_ERROR(CheckMagic(options, {magic, static_cast<size_t>(std::max<ssize_t>(got, 0))}));
  if (options.format == "qcow2") return DrainQcow2(options, writer, kept);
  STILL_RETURN_IF_ERROR(CheckSectors(options.path, *size));
  options.progress({.stage = "import"});
  return StoreOpenFile(writer, fd, *size, {.name = kImportedDisk, .role = Image::ROLE_DISK});
}

}  // namespace

absl::Status StoreFile(store::SnapshotWriter& writer, const std::string& path, store::ImageOptions options) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY));
  STILL_ASSIGN_OR_RETURN(const std::optional<uint64_t> size, DiskSize(fd.get(), path));
  if (!size.has_value()) return absl::InvalidArgumentError(absl::StrCat(path, " is a pipe, and no file"));
  return StoreOpenFile(writer, fd.get(), *size, std::move(options));
}

absl::StatusOr<manifestpb::Snapshot> ImportFile(store::Repository& repository, const ImportOptions& options) {
  STILL_RETURN_IF_ERROR(CheckFormat(options.format));
  if (!options.name.empty()) STILL_RETURN_IF_ERROR(CheckNewName("snapshot", options.name));
  STILL_ASSIGN_OR_RETURN(const std::string session, SessionName(options));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenSource(options));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::SnapshotWriter> writer, repository.BeginSnapshot());
  manifestpb::Snapshot manifest;
  Image& kept = *manifest.add_images();
  kept.set_name(kImportedDisk);
  kept.set_role(Image::ROLE_DISK);
  kept.set_source_format(options.format);
  STILL_RETURN_IF_ERROR(DrainSource(options, fd.get(), *writer, kept));
  manifest.set_name(options.name);
  manifest.set_session(session);
  manifest.set_kind(manifestpb::Snapshot::DISK);
  manifest.set_creator(absl::StrCat("still ", STILL_VERSION));
  manifest.set_point_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
  manifest.mutable_labels()->insert(options.labels.begin(), options.labels.end());
  manifest.mutable_consistency()->set_level(manifestpb::Consistency::CRASH);
  manifest.mutable_consistency()->add_downgrades("imported from a file");
  options.progress({.stage = "commit"});
  STILL_ASSIGN_OR_RETURN(std::string id, writer->Commit(manifest));
  return repository.FindSnapshot(id);
}

absl::Status ExportImage(store::Repository& repository, const ExportOptions& options) {
  STILL_RETURN_IF_ERROR(CheckFormat(options.format));
  STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, repository.FindSnapshot(options.snapshot));
  STILL_ASSIGN_OR_RETURN(std::string name, PickImage(snapshot, options.image));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> image, repository.OpenImage(snapshot, name));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ExportPlace> place, ExportPlace::Make(options.path, ExportPlace::Kind::kFile));
  auto progress = [&](uint64_t done) {
    options.progress({.stage = "export", .done = done, .total = image->size()});
    return options.go_on();
  };
  if (options.format == "qcow2") {
    STILL_RETURN_IF_ERROR(WriteQcow2(*image, place->partial(), progress));
  } else {
    STILL_RETURN_IF_ERROR(ExtendFileOrExplain(place->fd(), options.path, image->size()));
    STILL_RETURN_IF_ERROR(image->RestoreTo(place->fd(), {.progress = progress}));
  }
  return place->Finish();
}

}  // namespace still::snapshot
