#include "snapshot/session_files.h"

#include <fcntl.h>

#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "snapshot/boot_files.h"
#include "snapshot/export_place.h"
#include "snapshot/lazy_disk.h"
#include "snapshot/qcow2_writer.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

class Writer {
 public:
  Writer(store::Repository& repository, const manifestpb::Snapshot& snapshot, const SessionFileOptions& options)
      : repository_(repository), snapshot_(snapshot), options_(options) {}

  // Gives the path under which the session will find it.
  absl::StatusOr<std::string> Write(const Image& image, const std::string& name) const {
    const std::string path = JoinPath(options_.directory, name);
    STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_EXCL));
    STILL_RETURN_IF_ERROR(ExtendFileOrExplain(fd.get(), path, image.size()));
    STILL_RETURN_IF_ERROR(Annotate(WriteImage(repository_, snapshot_, image, fd.get(), options_.progress), path));
    return JoinPath(options_.used_as, name);
  }

  // A disk may be larger than any file of this file system; what it holds is not.
  absl::StatusOr<std::string> WriteAsQcow2(const Image& image, const std::string& name) const {
    const std::string path = JoinPath(options_.directory, name);
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository_.OpenImage(snapshot_, image.name()));
    auto progress = [&](uint64_t done) {
      options_.progress({.stage = absl::StrCat("restore ", image.name()), .done = done, .total = image.size()});
      return true;
    };
    STILL_RETURN_IF_ERROR(Annotate(WriteQcow2(*reader, path, progress), path));
    return JoinPath(options_.used_as, name);
  }

  absl::StatusOr<bool> FitsInAFile(uint64_t size) const {
    const std::string path = JoinPath(options_.directory, ".size");
    STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_TRUNC));
    STILL_RETURN_IF_ERROR(RemoveFile(path));
    return ExtendFile(fd.get(), path, size);
  }

  // The same for what is only read, and is the same in many sessions.
  absl::StatusOr<std::string> Link(const Image& image, const std::string& name) const {
    auto write = [&](int fd) { return WriteImage(repository_, snapshot_, image, fd, options_.progress); };
    const std::string key = absl::StrCat(repository_.id(), "-", absl::BytesToHexString(image.root()));
    STILL_RETURN_IF_ERROR(BootFiles(options_.boot_files).LinkTo(key, JoinPath(options_.directory, name), write));
    return JoinPath(options_.used_as, name);
  }

  absl::Status WriteDisk(const manifestpb::Disk& disk, sessionpb::DiskFile& file) const {
    const Image* found = nullptr;
    for (const Image& image : snapshot_.images()) {
      if (image.role() == Image::ROLE_DISK && image.name() == disk.name()) found = &image;
    }
    if (found == nullptr) return absl::DataLossError(absl::StrCat("the snapshot has no image of disk ", disk.name()));
    if (options_.lazy_disks) {
      return MakeLazyDisk(*found, JoinPath(options_.directory, absl::StrCat(disk.name(), ".qcow2")), file);
    }
    STILL_ASSIGN_OR_RETURN(const bool fits, FitsInAFile(found->size()));
    file.set_format(fits ? "raw" : "qcow2");
    const std::string name = absl::StrCat(disk.name(), ".", file.format());
    STILL_ASSIGN_OR_RETURN(std::string path, fits ? Write(*found, name) : WriteAsQcow2(*found, name));
    file.set_path(path);
    return absl::OkStatus();
  }

 private:
  store::Repository& repository_;
  const manifestpb::Snapshot& snapshot_;
  const SessionFileOptions& options_;
};

}  // namespace

const Image* FindImage(const manifestpb::Snapshot& snapshot, Image::Role role) {
  for (const Image& image : snapshot.images()) {
    if (image.role() == role) return &image;
  }
  return nullptr;
}

absl::Status WriteSessionFiles(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                               const SessionFileOptions& options, sessionpb::SessionConfig& config) {
  Writer writer(repository, snapshot, options);
  manifestpb::Machine& machine = *config.mutable_machine();
  if (machine.disks_size() == 0) {  // An import: its disks are all there is.
    for (const Image& image : snapshot.images()) {
      if (image.role() == Image::ROLE_DISK) machine.add_disks()->set_name(image.name());
    }
  }
  for (const manifestpb::Disk& disk : machine.disks()) {
    sessionpb::DiskFile& file = *config.add_disks();
    file.set_name(disk.name());
    if (!options.without_disks.contains(disk.name())) STILL_RETURN_IF_ERROR(writer.WriteDisk(disk, file));
  }
  if (const Image* kernel = FindImage(snapshot, Image::ROLE_KERNEL)) {
    STILL_ASSIGN_OR_RETURN(*config.mutable_kernel(), writer.Link(*kernel, "kernel"));
  }
  if (const Image* initrd = FindImage(snapshot, Image::ROLE_INITRD)) {
    STILL_ASSIGN_OR_RETURN(*config.mutable_initrd(), writer.Link(*initrd, "initrd"));
  }
  if (!options.device_state) return absl::OkStatus();
  const Image* devices = FindImage(snapshot, Image::ROLE_DEVICE_STATE);
  if (devices == nullptr) return absl::DataLossError("the snapshot has no device state; use --cold");
  STILL_ASSIGN_OR_RETURN(*config.mutable_restore()->mutable_device_state(), writer.Write(*devices, "devices"));
  return absl::OkStatus();
}

absl::Status WriteImage(store::Repository& repository, const manifestpb::Snapshot& snapshot, const Image& image, int fd,
                        const ProgressSink& progress) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository.OpenImage(snapshot, image.name()));
  return reader->RestoreTo(
      fd, {.progress = [&](uint64_t done) {
        progress({.stage = absl::StrCat("restore ", image.name()), .done = done, .total = image.size()});
        return true;
      }});
}

}  // namespace still::snapshot
