#include "snapshot/snapshot_of_disks.h"

#include <fcntl.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/host_identity.h"
#include "base/process.h"
#include "session/control/session_lock.h"
#include "session/machine_id.h"
#include "session/session_config.h"
#include "session/start_again.h"
#include "snapshot/disk_drain.h"
#include "snapshot/file_image.h"
#include "snapshot/scratch_directory.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

constexpr absl::Duration kServerStart = absl::Seconds(10);
constexpr absl::Duration kLookForServer = absl::Milliseconds(20);
constexpr size_t kLongestError = 4096;

// qemu-nbd over one disk file. It takes QEMU's lock of the image, too: a hypervisor that is not ours holds it off.
class DiskFileServer {
 public:
  static absl::StatusOr<std::unique_ptr<DiskFileServer>> Start(const sessionpb::DiskFile& disk) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ScratchDirectory> scratch, ScratchDirectory::Make());
    std::unique_ptr<DiskFileServer> server(new DiskFileServer(std::move(scratch)));
    STILL_RETURN_IF_ERROR(server->Launch(disk));
    return server;
  }
  NbdSource Source() const { return {.socket = JoinPath(scratch_->path(), "nbd.sock"), .export_name = "disk"}; }
  uint64_t size() const { return size_; }

 private:
  explicit DiskFileServer(std::unique_ptr<ScratchDirectory> scratch) : scratch_(std::move(scratch)) {}

  absl::Status Launch(const sessionpb::DiskFile& disk) {
    const std::string log = JoinPath(scratch_->path(), "log");
    STILL_ASSIGN_OR_RETURN(OwnedFd errors, OpenFile(log, O_RDWR | O_CREAT));
    STILL_ASSIGN_OR_RETURN(
        ChildProcess process,
        ChildProcess::Start({.argv = {"qemu-nbd", "--read-only", absl::StrCat("--format=", disk.format()),
                                      "--persistent", "--shared=2", absl::StrCat("--socket=", Source().socket),
                                      "--export-name=disk", "--cache=none", "--aio=threads", disk.path()},
                             .stderr_fd = errors.get(),
                             .end_with_parent = true}));
    process_ = std::make_unique<ChildProcess>(std::move(process));
    const absl::Duration deadline = Clock::Real().Monotonic() + kServerStart;
    absl::StatusOr<uint64_t> size = NbdSize(Source());
    while (!size.ok() && Clock::Real().Monotonic() < deadline) {
      if (process_->Wait(kLookForServer).ok()) {
        absl::StatusOr<std::string> text = ReadFile(log, kLongestError);
        return absl::FailedPreconditionError(absl::StrCat(
            "disk ", disk.path(), ": ", text.ok() ? absl::StripSuffix(*text, "\n") : "qemu-nbd ended without a word"));
      }
      size = NbdSize(Source());
    }
    if (!size.ok()) return Annotate(size.status(), absl::StrCat("disk ", disk.path()));
    size_ = *size;
    return absl::OkStatus();
  }

  const std::unique_ptr<ScratchDirectory> scratch_;  // Removed when the process has ended: destroyed after it.
  std::unique_ptr<ChildProcess> process_;
  uint64_t size_ = 0;
};

class SnapshotOfDisks {
 public:
  SnapshotOfDisks(session::SessionEntry entry, HostIdentity host, store::Repository& repository,
                  const SnapshotOfDisksOptions& options)
      : entry_(std::move(entry)), host_(std::move(host)), repository_(repository), options_(options) {}

  absl::StatusOr<manifestpb::Snapshot> Take() {
    STILL_ASSIGN_OR_RETURN(auto earlier, repository_.ListSnapshotsOf(entry_.name));
    for (const manifestpb::Snapshot& one : earlier) {
      if (one.session_id() == entry_.config.id()) parent_ = one;
    }
    STILL_ASSIGN_OR_RETURN(writer_, repository_.BeginSnapshot());
    Describe();
    STILL_RETURN_IF_ERROR(StoreBootFiles());
    const absl::Duration begin = Clock::Real().Monotonic();
    for (const sessionpb::DiskFile& disk : entry_.config.disks()) STILL_RETURN_IF_ERROR(StoreDisk(disk));
    manifest_.mutable_drain()->set_duration_us(
        static_cast<uint64_t>(absl::ToInt64Microseconds(Clock::Real().Monotonic() - begin)));
    options_.progress({.stage = "commit"});
    STILL_ASSIGN_OR_RETURN(std::string id, writer_->Commit(manifest_));
    return repository_.FindSnapshot(id);
  }

 private:
  void Describe() {
    manifest_.set_session(entry_.name);
    manifest_.set_session_id(entry_.config.id());
    manifest_.set_machine_id(session::MachineIdOf(host_, entry_.config));
    manifest_.set_host(host_.name);
    manifest_.set_host_id(host_.id);
    manifest_.set_creator(absl::StrCat("still ", STILL_VERSION));
    manifest_.set_kind(manifestpb::Snapshot::DISK);
    manifest_.set_point_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
    manifest_.mutable_labels()->insert(options_.labels.begin(), options_.labels.end());
    const std::string how = entry_.end.has_value() ? session::DescribeEnd(*entry_.end) : "it is not known how it ended";
    (*manifest_.mutable_labels())[std::string(kOffLabel)] = how;
    *manifest_.mutable_machine() = entry_.config.machine();
    manifest_.set_parent_id(parent_.id());
    const bool whole = entry_.end.has_value() && WasShutDown(*entry_.end);
    manifest_.mutable_consistency()->set_level(whole ? manifestpb::Consistency::FILESYSTEM
                                                     : manifestpb::Consistency::CRASH);
    if (!whole) {
      manifest_.mutable_consistency()->add_downgrades(
          absl::StrCat("the machine was off and its guest had not been shut down: ", how));
    }
  }

  absl::Status StoreBootFiles() {
    if (!entry_.config.machine().direct_kernel()) return absl::OkStatus();
    STILL_RETURN_IF_ERROR(StoreBootFile("kernel", Image::ROLE_KERNEL, entry_.config.kernel()));
    if (entry_.config.initrd().empty()) return absl::OkStatus();
    return StoreBootFile("initrd", Image::ROLE_INITRD, entry_.config.initrd());
  }

  absl::Status StoreBootFile(const std::string& name, Image::Role role, const std::string& path) {
    STILL_RETURN_IF_ERROR(StoreFile(*writer_, path, {.name = name, .role = role}));
    Image& kept = *manifest_.add_images();
    kept.set_name(name);
    kept.set_role(role);
    return absl::OkStatus();
  }

  absl::Status StoreDisk(const sessionpb::DiskFile& disk) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<DiskFileServer> server, DiskFileServer::Start(disk));
    store::ImageOptions image_options{.name = disk.name(), .role = Image::ROLE_DISK, .size = server->size()};
    for (const Image& base : parent_.images()) {
      if (base.name() != disk.name()) continue;
      image_options.parent_root = base.root();
      image_options.parent_size = base.size();
    }
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image, writer_->BeginImage(image_options));
    NbdSource source = server->Source();
    source.pace = options_.pace;
    STILL_ASSIGN_OR_RETURN(
        DrainedDisk drained, DrainDisk(source, server->size(), *image, [&](uint64_t done) {
          options_.progress({.stage = absl::StrCat("read ", disk.name()), .done = done, .total = server->size()});
        }));
    STILL_RETURN_IF_ERROR(image->Finish());
    Image& kept = *manifest_.add_images();
    kept.set_name(disk.name());
    kept.set_role(Image::ROLE_DISK);
    kept.set_source_format(disk.format());
    kept.set_bytes_read(drained.bytes_read);
    manifest_.mutable_drain()->set_bytes_read(manifest_.drain().bytes_read() + drained.bytes_read);
    return absl::OkStatus();
  }

  const session::SessionEntry entry_;
  const HostIdentity host_;
  store::Repository& repository_;
  const SnapshotOfDisksOptions& options_;
  manifestpb::Snapshot parent_;  // Empty: there is none.
  manifestpb::Snapshot manifest_;
  std::unique_ptr<store::SnapshotWriter> writer_;
};

}  // namespace

bool WasShutDown(const sessionpb::SessionEnd& end) {
  if (end.kind() == sessionpb::SessionEnd::POWERED_OFF) return true;
  return end.kind() == sessionpb::SessionEnd::STOPPED && !end.by_force();
}

absl::StatusOr<manifestpb::Snapshot> TakeSnapshotOfDisks(const session::SessionRegistry& sessions,
                                                         const std::string& session, store::Repository& repository,
                                                         const SnapshotOfDisksOptions& options) {
  absl::StatusOr<OwnedFd> lock = session::LockSession(sessions.Directory(session));
  if (!lock.ok()) return Annotate(lock.status(), absl::StrCat("snapshot of the disks of ", session));
  // Only now: until then it might have been started.
  STILL_ASSIGN_OR_RETURN(session::SessionEntry entry, sessions.Find(session));
  if (entry.ready) return absl::FailedPreconditionError(absl::StrCat("session ", session, " runs"));
  if (session::NeedsDiskServer(entry.config)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the disks of ", session, " are not complete without the repository that they were restored from; ",
        "start it, and let `still hydrate ", session, "` finish"));
  }
  STILL_ASSIGN_OR_RETURN(HostIdentity host, ReadHostIdentity(sessions.root()));
  return SnapshotOfDisks(std::move(entry), std::move(host), repository, options).Take();
}

}  // namespace still::snapshot
