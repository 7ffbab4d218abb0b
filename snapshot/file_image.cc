#include "snapshot/file_image.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/undo.h"
#include "base/unix_socket.h"
#include "snapshot/disk_drain.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

constexpr char kImportedDisk[] = "vda";
constexpr absl::Duration kServerStart = absl::Seconds(10);
constexpr absl::Duration kConvertLimit = absl::Hours(24);

absl::Status CheckFormat(const std::string& format) {
  if (format == "raw" || format == "qcow2") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("format \"", format, "\" is not known; use raw or qcow2"));
}

// A private directory under TMPDIR, gone with the object.
class ScratchDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchDirectory>> Make() {
    std::string pattern = (std::filesystem::temp_directory_path() / "still-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, absl::StrCat("mkdtemp ", pattern));
    return std::make_unique<ScratchDirectory>(pattern);
  }
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  ~ScratchDirectory() { RemoveTree(path_).IgnoreError(); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A qcow2 file is read by QEMU's own tools, over NBD: its format is not ours to parse.
absl::Status DrainQcow2(const ImportOptions& options, store::SnapshotWriter& writer, Image& kept) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ScratchDirectory> scratch, ScratchDirectory::Make());
  NbdSource source{.socket = JoinPath(scratch->path(), "nbd.sock"), .export_name = "import"};
  STILL_ASSIGN_OR_RETURN(OwnedFd errors, OpenFile(JoinPath(scratch->path(), "log"), O_RDWR | O_CREAT));
  STILL_ASSIGN_OR_RETURN(
      ChildProcess server,
      ChildProcess::Start({.argv = {"qemu-nbd", "--read-only", "--format=qcow2", "--persistent", "--shared=2",
                                    absl::StrCat("--socket=", source.socket), "--export-name=import", "--cache=none",
                                    "--aio=threads", std::filesystem::absolute(options.path).string()},
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

absl::Status ConvertToQcow2(const std::string& raw, const std::string& qcow2) {
  absl::StatusOr<CommandOutput> output =
      RunCommand({.argv = {"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2}, .end_with_parent = true},
                 kConvertLimit);
  if (!output.ok()) return output.status();
  if (!output->exit.ok()) {
    return absl::UnavailableError(absl::StrCat("qemu-img convert: ", absl::StripSuffix(output->stderr_text, "\n")));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StoreFile(store::SnapshotWriter& writer, const std::string& path, store::ImageOptions options) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY));
  STILL_ASSIGN_OR_RETURN(options.size, FileSize(path));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image, writer.BeginImage(options));
  STILL_RETURN_IF_ERROR(image->WriteFromFile(fd.get(), 0, 0, options.size));
  return image->Finish();
}

absl::StatusOr<manifestpb::Snapshot> ImportFile(store::Repository& repository, const ImportOptions& options) {
  STILL_RETURN_IF_ERROR(CheckFormat(options.format));
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(options.path, O_RDONLY));
  char magic[4] = {};
  bool is_qcow2 = ::pread(fd.get(), magic, sizeof magic, 0) == sizeof magic && std::memcmp(magic, "QFI\xfb", 4) == 0;
  if (is_qcow2 != (options.format == "qcow2")) {
    return absl::InvalidArgumentError(absl::StrCat(options.path, is_qcow2
                                                                     ? " begins like a qcow2 image; say --format qcow2"
                                                                     : " is not a qcow2 image; say --format raw"));
  }
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::SnapshotWriter> writer, repository.BeginSnapshot());
  manifestpb::Snapshot manifest;
  Image& kept = *manifest.add_images();
  kept.set_name(kImportedDisk);
  kept.set_role(Image::ROLE_DISK);
  kept.set_source_format(options.format);
  if (options.format == "qcow2") {
    STILL_RETURN_IF_ERROR(DrainQcow2(options, *writer, kept));
  } else {
    options.progress({.stage = "import"});
    STILL_RETURN_IF_ERROR(StoreFile(*writer, options.path, {.name = kImportedDisk, .role = Image::ROLE_DISK}));
  }
  manifest.set_name(options.name);
  manifest.set_session(std::filesystem::path(options.path).filename().string());
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
  if (PathExists(options.path)) {
    return absl::AlreadyExistsError(absl::StrCat(options.path, " exists; choose another file or remove it"));
  }
  // Written under another name and renamed at the end: a file with the right name is whole.
  std::string partial = absl::StrCat(options.path, ".partial");
  UndoStack undo;
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(partial, O_RDWR | O_CREAT | O_EXCL));
  undo.Push("remove partial export", [partial] { return RemoveFile(partial); });
  STILL_RETURN_IF_ERROR(image->RestoreTo(fd.get(), {.progress = [&](uint64_t done) {
                                           options.progress({.stage = "export", .done = done, .total = image->size()});
                                           return true;
                                         }}));
  std::string finished = partial;
  if (options.format == "qcow2") {
    finished = absl::StrCat(options.path, ".partial.qcow2");
    undo.Push("remove partial export", [finished] { return RemoveFile(finished); });
    STILL_RETURN_IF_ERROR(ConvertToQcow2(partial, finished));
    STILL_ASSIGN_OR_RETURN(fd, OpenFile(finished, O_RDWR));
  }
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", finished));
  // Never in the place of what somebody else made meanwhile.
  if (::renameat2(AT_FDCWD, finished.c_str(), AT_FDCWD, options.path.c_str(), RENAME_NOREPLACE) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rename ", finished, " to ", options.path));
  }
  undo.Run();
  std::filesystem::path parent = std::filesystem::absolute(options.path).parent_path();
  return SyncDirectory(parent.string());
}

}  // namespace still::snapshot
