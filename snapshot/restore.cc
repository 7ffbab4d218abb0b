#include "snapshot/restore.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/random.h"
#include "base/undo.h"
#include "session/session_config.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

const Image* FindRole(const manifestpb::Snapshot& snapshot, Image::Role role) {
  for (const Image& image : snapshot.images()) {
    if (image.role() == role) return &image;
  }
  return nullptr;
}

class RestoreRun {
 public:
  RestoreRun(store::Repository& repository, const session::SessionRegistry& sessions, const RestoreOptions& options)
      : repository_(repository), sessions_(sessions), options_(options) {}

  absl::StatusOr<RestoredSession> Run() {
    STILL_RETURN_IF_ERROR(Prepare());
    const absl::Duration begun = Clock::Real().Monotonic();
    STILL_RETURN_IF_ERROR(MaterialiseFiles());
    if (warm_) STILL_RETURN_IF_ERROR(MaterialiseMemory());
    const absl::Duration materialised = Clock::Real().Monotonic();
    options_.progress({.stage = "start"});
    STILL_RETURN_IF_ERROR(sessions_.Launch(config_, std::move(ram_), options_.agent_timeout + absl::Seconds(60)));
    undo_.Disarm();
    return RestoredSession{.snapshot = snapshot_,
                           .directory = directory_,
                           .materialised = materialised - begun,
                           .started = Clock::Real().Monotonic() - materialised};
  }

 private:
  absl::Status Prepare();
  absl::Status CheckWarm();
  absl::Status MaterialiseFiles();
  absl::Status MaterialiseMemory();
  absl::Status ToFile(const Image& image, const std::string& path);
  absl::Status ToFd(const Image& image, int fd);

  store::Repository& repository_;
  const session::SessionRegistry& sessions_;
  const RestoreOptions& options_;
  manifestpb::Snapshot snapshot_;
  bool warm_ = false;
  std::string directory_;
  sessionpb::SessionConfig config_;
  OwnedFd ram_;
  UndoStack undo_;
};

absl::Status RestoreRun::Prepare() {
  STILL_ASSIGN_OR_RETURN(snapshot_, repository_.FindSnapshot(options_.snapshot));
  if (FindRole(snapshot_, Image::ROLE_DISK) == nullptr && FindRole(snapshot_, Image::ROLE_KERNEL) == nullptr) {
    return absl::FailedPreconditionError("the snapshot holds nothing that could be booted");
  }
  warm_ = !options_.cold && snapshot_.kind() == manifestpb::Snapshot::DISK_AND_MEMORY;
  if (warm_) STILL_RETURN_IF_ERROR(CheckWarm());

  config_.set_name(options_.session);
  config_.set_id(RandomUuid());
  config_.set_origin_snapshot(snapshot_.id());
  config_.set_vsock_backend(options_.vsock_backend);
  config_.set_agent_deadline_s(static_cast<uint32_t>(absl::ToInt64Seconds(options_.agent_timeout)));
  manifestpb::Machine& machine = *config_.mutable_machine();
  machine = snapshot_.machine();
  if (!warm_) {
    // Any compatible machine: what ties it to the one that was saved is chosen anew.
    machine.clear_machine_type();
    machine.clear_cpu_model();
    machine.clear_accelerator();
    machine.clear_firmware();
    if (machine.vcpus() == 0) machine.set_vcpus(1);
    if (machine.memory_bytes() == 0) machine.set_memory_bytes(uint64_t{512} << 20);
    if (options_.vcpus != 0) machine.set_vcpus(options_.vcpus);
    if (options_.memory_bytes != 0) machine.set_memory_bytes(options_.memory_bytes);
    if (!options_.accelerator.empty()) machine.set_accelerator(options_.accelerator);
  }
  if (!machine.vsock() && machine.hypervisor() != "") config_.set_vsock_backend(sessionpb::SessionConfig::OFF);
  if (config_.vsock_backend() == sessionpb::SessionConfig::OFF) config_.set_agent_deadline_s(0);

  STILL_ASSIGN_OR_RETURN(directory_, sessions_.Create(options_.session));
  undo_.Push("remove the new session's directory", [directory = directory_] { return RemoveTree(directory); });
  return absl::OkStatus();
}

// What would fail later in a way that is hard to read, or worse, run wrong.
absl::Status RestoreRun::CheckWarm() {
  const manifestpb::Machine& machine = snapshot_.machine();
  if (options_.vcpus != 0 || options_.memory_bytes != 0) {
    return absl::InvalidArgumentError("saved memory goes on with the cpus and memory it had; other sizes need --cold");
  }
  if (!options_.accelerator.empty() && options_.accelerator != machine.accelerator()) {
    return absl::FailedPreconditionError(absl::StrCat("the memory was saved under ", machine.accelerator(),
                                                      " and cannot go on under ", options_.accelerator,
                                                      "; boot the disks instead: --cold"));
  }
  bool frozen = snapshot_.consistency().frozen_size() > 0;
  if (frozen && (!machine.vsock() || options_.vsock_backend == sessionpb::SessionConfig::OFF)) {
    return absl::FailedPreconditionError(
        "the saved memory holds frozen file systems and the session would have no vsock to thaw them; use --cold");
  }
  return absl::OkStatus();
}

absl::Status RestoreRun::MaterialiseFiles() {
  manifestpb::Machine& machine = *config_.mutable_machine();
  if (machine.disks_size() == 0) {  // An import: its disks are all there is.
    for (const Image& image : snapshot_.images()) {
      if (image.role() == Image::ROLE_DISK) machine.add_disks()->set_name(image.name());
    }
  }
  for (const manifestpb::Disk& disk : machine.disks()) {
    const Image* found = nullptr;
    for (const Image& image : snapshot_.images()) {
      if (image.role() == Image::ROLE_DISK && image.name() == disk.name()) found = &image;
    }
    if (found == nullptr) return absl::DataLossError(absl::StrCat("the snapshot has no image of disk ", disk.name()));
    sessionpb::DiskFile& file = *config_.add_disks();
    file.set_name(disk.name());
    file.set_format("raw");
    file.set_path(JoinPath(directory_, absl::StrCat(disk.name(), ".raw")));
    STILL_RETURN_IF_ERROR(ToFile(*found, file.path()));
  }
  if (const Image* kernel = FindRole(snapshot_, Image::ROLE_KERNEL)) {
    config_.set_kernel(JoinPath(directory_, "kernel"));
    STILL_RETURN_IF_ERROR(ToFile(*kernel, config_.kernel()));
  }
  if (const Image* initrd = FindRole(snapshot_, Image::ROLE_INITRD)) {
    config_.set_initrd(JoinPath(directory_, "initrd"));
    STILL_RETURN_IF_ERROR(ToFile(*initrd, config_.initrd()));
  }
  return absl::OkStatus();
}

absl::Status RestoreRun::MaterialiseMemory() {
  const Image* ram = FindRole(snapshot_, Image::ROLE_RAM);
  const Image* devices = FindRole(snapshot_, Image::ROLE_DEVICE_STATE);
  if (ram == nullptr || devices == nullptr)
    return absl::DataLossError("the snapshot's memory is not complete; use --cold");
  ram_ = OwnedFd(::memfd_create("still-ram", MFD_CLOEXEC));
  if (!ram_.valid()) return ErrnoStatus(errno, "memfd_create");
  if (::ftruncate(ram_.get(), static_cast<off_t>(ram->size())) != 0) return ErrnoStatus(errno, "size the memory image");
  STILL_RETURN_IF_ERROR(ToFd(*ram, ram_.get()));
  sessionpb::RestoreSource& source = *config_.mutable_restore();
  source.set_snapshot_id(snapshot_.id());
  source.set_restore_id(RandomUuid());
  source.set_device_state(JoinPath(directory_, "devices"));
  source.set_thaw(snapshot_.consistency().frozen_size() > 0);
  return ToFile(*devices, source.device_state());
}

absl::Status RestoreRun::ToFile(const Image& image, const std::string& path) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_EXCL));
  if (::ftruncate(fd.get(), static_cast<off_t>(image.size())) != 0)
    return ErrnoStatus(errno, absl::StrCat("size ", path));
  return Annotate(ToFd(image, fd.get()), path);
}

absl::Status RestoreRun::ToFd(const Image& image, int fd) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository_.OpenImage(snapshot_, image.name()));
  return reader->RestoreTo(
      fd, {.progress = [&](uint64_t done) {
        options_.progress({.stage = absl::StrCat("restore ", image.name()), .done = done, .total = image.size()});
        return true;
      }});
}

}  // namespace

absl::StatusOr<RestoredSession> RestoreSnapshot(store::Repository& repository, const session::SessionRegistry& sessions,
                                                const RestoreOptions& options) {
  STILL_RETURN_IF_ERROR(session::ValidateSessionName(options.session));
  return RestoreRun(repository, sessions, options).Run();
}

}  // namespace still::snapshot
