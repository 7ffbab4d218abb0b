#include "snapshot/take_snapshot.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/host_identity.h"
#include "base/log.h"
#include "base/names.h"
#include "base/unix_socket.h"
#include "session/machine_id.h"
#include "snapshot/background.h"
#include "snapshot/capture_stream.h"
#include "snapshot/disk_drain.h"
#include "snapshot/file_image.h"
#include "snapshot/memory_drain.h"

namespace still::snapshot {
namespace {

// A commit waits so long for thaw hooks that still run. Nobody in the guest waits for it.
constexpr absl::Duration kThawHooksPatience = absl::Seconds(3);
// Each step reads a manifest. What is further away is read in full.
constexpr int kLongestWayToBase = 32;

using manifestpb::Image;

// The newest earlier snapshot of the same session: what this one is compared with and, by its bitmaps, builds on. By the
// order of commits; a clock that was ahead once must not make one the parent of all that follow.
const store::SnapshotSummary* FindParent(const std::vector<store::SnapshotSummary>& all,
                                         const std::string& session_id) {
  const auto commit = [](const store::SnapshotSummary& one) {
    return std::tie(one.sequence, one.committed_unix_ns, one.id);
  };
  const store::SnapshotSummary* newest = nullptr;
  for (const store::SnapshotSummary& one : all) {
    if (one.session_id != session_id) continue;
    if (newest == nullptr || commit(*newest) < commit(one)) newest = &one;
  }
  return newest;
}

const Image* FindImage(const manifestpb::Snapshot& snapshot, const std::string& name) {
  for (const Image& image : snapshot.images()) {
    if (image.name() == name) return &image;
  }
  return nullptr;
}

class SnapshotRun {
 public:
  SnapshotRun(session::SessionEntry session, HostIdentity host,
              std::unique_ptr<sessionpb::SessionControl::Stub> control, store::Repository& repository,
              const TakeOptions& options)
      : session_(std::move(session)),
        host_(std::move(host)),
        control_(std::move(control)),
        repository_(repository),
        options_(options) {}

  absl::StatusOr<manifestpb::Snapshot> Run() {
    STILL_RETURN_IF_ERROR(Prepare());
    STILL_RETURN_IF_ERROR(Window());
    STILL_RETURN_IF_ERROR(Drain());
    STILL_RETURN_IF_ERROR(Commit());
    Release();
    return std::move(manifest_);
  }

 private:
  absl::Status Prepare();
  absl::Status Window();
  absl::Status Drain();
  absl::Status Commit();
  void Release();

  absl::Status Cause(const absl::Status& seen);
  void KeepThawHooks();
  void FindMemoryBase();
  void FindTrackedMemory(manifestpb::Snapshot at);
  absl::Status StoreBootFiles();
  absl::Status DrainDisks();
  absl::Status StoreDeviceState(const std::string& content);
  store::ImageOptions ImageOptionsFor(const std::string& name, Image::Role role, uint64_t size) const;
  Image& Keep(const std::string& name);
  void Show(const std::string& stage, uint64_t done = 0, uint64_t total = 0) const {
    options_.progress({.stage = stage, .done = done, .total = total});
  }

  const session::SessionEntry session_;
  const HostIdentity host_;
  const std::unique_ptr<sessionpb::SessionControl::Stub> control_;
  store::Repository& repository_;
  const TakeOptions& options_;

  manifestpb::Snapshot manifest_;
  std::optional<manifestpb::Snapshot> parent_;
  // A memory from which the session may know what was written since.
  struct MemoryBase {
    Image image;
    std::string point;  // BeginCaptureRequest.base_memory
  };
  std::optional<MemoryBase> memory_base_;
  // Destroyed in reverse order: drains end before the stream that keeps their source alive, images before their
  // snapshot.
  std::unique_ptr<store::SnapshotWriter> writer_;
  std::unique_ptr<CaptureStream> stream_;
  std::unique_ptr<MemoryDrain> memory_;
  absl::Duration drain_started_;
};

// Needs:            a running session, an open repository.
// Does:             all that can fail before the guest is touched: the name, the parent, the writer, the boot files.
// Undo:             the writer drops what it has.
// If we crash here: nothing has happened to the guest; stored packs are found by the next capture.
// Time bound:       that of the repository; the guest does not wait.
absl::Status SnapshotRun::Prepare() {
  Show("prepare");
  STILL_ASSIGN_OR_RETURN(const auto all, repository_.Summaries());
  for (const store::SnapshotSummary& snapshot : *all) {
    if (!options_.name.empty() && snapshot.name == options_.name) {
      return absl::AlreadyExistsError(absl::StrCat("snapshot name \"", options_.name, "\" is taken by ",
                                                   snapshot.id.substr(0, 12), "; choose another"));
    }
  }
  if (const store::SnapshotSummary* parent = FindParent(*all, session_.config.id()); parent != nullptr) {
    absl::StatusOr<manifestpb::Snapshot> found = repository_.FindSnapshot(parent->id);
    if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
    if (found.ok()) parent_ = *std::move(found);  // Else somebody has just forgotten it.
  }
  if (parent_.has_value() && absl::FromUnixNanos(parent_->point_unix_ns()) > Clock::Real().Now()) {
    LogWarning("the snapshot before this one has its point in the future: the clock was wrong, or is",
               {{"session", session_.name}, {"snapshot", parent_->id()}});
  }
  FindMemoryBase();
  STILL_ASSIGN_OR_RETURN(writer_, repository_.BeginSnapshot());
  manifest_.set_name(options_.name);
  manifest_.set_session(session_.name);
  manifest_.set_session_id(session_.config.id());
  manifest_.set_machine_id(session::MachineIdOf(host_, session_.config));
  manifest_.set_host(host_.name);
  manifest_.set_host_id(host_.id);
  manifest_.set_creator(absl::StrCat("still ", STILL_VERSION));
  manifest_.mutable_labels()->insert(options_.labels.begin(), options_.labels.end());
  if (parent_.has_value()) manifest_.set_parent_id(parent_->id());
  // The repository's workers start with their first task and stay what whoever brings it is.
  return InBackground([this] { return StoreBootFiles(); });
}

// With tracking, the newest snapshot that is tracked from: those without it lie between and leave it alone. Else the image that
// the session's memory is a private mapping of, if it is this repository's: of a fork only its own pages are read.
void SnapshotRun::FindMemoryBase() {
  if (!options_.memory) return;
  if (options_.track_memory && parent_.has_value()) FindTrackedMemory(*parent_);
  const sessionpb::RestoreSource& source = session_.config.restore();
  if (memory_base_.has_value() || !source.private_mapping()) return;
  absl::StatusOr<manifestpb::Snapshot> origin = repository_.FindSnapshot(source.snapshot_id());
  const Image* ram = origin.ok() ? FindImage(*origin, "ram") : nullptr;
  if (ram != nullptr) memory_base_ = {.image = *ram, .point = source.snapshot_id()};
}

void SnapshotRun::FindTrackedMemory(manifestpb::Snapshot at) {
  for (int step = 0; step < kLongestWayToBase; ++step) {
    if (const Image* ram = FindImage(at, "ram"); ram != nullptr && !ram->memory_point().empty()) {
      memory_base_ = {.image = *ram, .point = ram->memory_point()};
      return;
    }
    if (at.parent_id().empty()) return;
    absl::StatusOr<manifestpb::Snapshot> before = repository_.FindSnapshot(at.parent_id());
    if (!before.ok() || before->session_id() != at.session_id()) return;
    at = *std::move(before);
  }
}

// Needs:            a prepared writer.
// Does:             asks the session for the critical window and takes the memory stream from its first byte on.
// Undo:             destroying stream_ breaks the session's life line: it resumes, thaws and releases by itself.
// If we crash here: the same.
// Time bound:       the freeze lease and the session's own deadlines; a session that is silent for longer is given up.
absl::Status SnapshotRun::Window() {
  Show("freeze");
  sessionpb::BeginCaptureRequest request;
  request.set_quiesce(options_.quiesce);
  request.set_hook_policy(options_.hook_policy);
  request.set_memory(options_.memory);
  request.set_freeze_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.freeze_lease)));
  request.set_hook_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.hook_timeout)));
  request.set_skip_presync(options_.skip_presync);
  request.set_pin_space_limit(options_.pin_space_limit);
  request.set_max_pause_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.max_pause)));
  request.set_memory_policy(options_.memory_policy);
  request.set_repository_id(repository_.id());
  request.set_track_memory(options_.track_memory);
  if (memory_base_.has_value()) request.set_base_memory(memory_base_->point);
  if (parent_.has_value()) {
    for (const Image& image : parent_->images()) {
      if (!image.bitmap().empty()) (*request.mutable_base_bitmaps())[image.name()] = image.bitmap();
    }
  }
  stream_ = CaptureStream::Begin(
      *control_, request, {.session = session_.name, .on_step = [this](const std::string& step) { Show(step); }});
  STILL_ASSIGN_OR_RETURN(sessionpb::CapturePrepared prepared, stream_->WaitPrepared());
  if (options_.memory && prepared.no_memory_reason().empty()) {
    STILL_ASSIGN_OR_RETURN(OwnedFd sink, ConnectUnix(prepared.memory_socket()));
    memory_ = std::make_unique<MemoryDrain>(
        std::move(sink), prepared.memory_format(), session_.directory,
        [this](uint64_t size) { return writer_->BeginImage(ImageOptionsFor("ram", Image::ROLE_RAM, size)); });
  }
  absl::Status pinned_status = stream_->WaitPinned([this] { return memory_ == nullptr ? 0 : memory_->bytes_taken(); });
  if (memory_ != nullptr) memory_->LetGo();
  if (!pinned_status.ok()) return Cause(pinned_status);
  const sessionpb::CapturePinned& pinned = stream_->pinned();
  manifest_.set_kind(memory_ != nullptr ? manifestpb::Snapshot::DISK_AND_MEMORY : manifestpb::Snapshot::DISK);
  manifest_.set_point_unix_ns(pinned.point_unix_ns());
  *manifest_.mutable_consistency() = pinned.consistency();
  *manifest_.mutable_windows() = pinned.windows();
  *manifest_.mutable_machine() = pinned.machine();
  return absl::OkStatus();
}

// Needs:            pinned disks and a memory stream; the guest runs.
// Does:             reads both into the repository at the same time.
// Undo:             as in Window.
// If we crash here: as in Window; finished packs are found by the next capture.
// Time bound:       none as long as bytes come: whoever owes them and sends none is given up (NbdSource, MemoryDrain).
absl::Status SnapshotRun::Drain() {
  drain_started_ = Clock::Real().Monotonic();
  absl::Status status = InBackground([this] { return DrainDisks(); });
  if (memory_ != nullptr && status.ok()) {
    uint64_t total = manifest_.machine().memory_bytes();
    Show("drain memory", std::min(memory_->bytes_done(), total), total);
    absl::StatusOr<DrainedMemory> drained = memory_->Finish();
    status = drained.status();
    if (status.ok()) {
      Image& ram = Keep("ram");
      ram.set_role(Image::ROLE_RAM);
      ram.set_bytes_read(drained->bytes_read);
      ram.set_memory_point(stream_->pinned().memory_point());
      manifest_.mutable_machine()->set_memory_bytes(drained->ram_bytes);
      manifest_.mutable_drain()->set_bytes_read(manifest_.drain().bytes_read() + drained->bytes_read);
      status = StoreDeviceState(drained->device_state);
    }
  }
  return Cause(status);
}

// Needs:            every image finished.
// Does:             makes the snapshot durable and listed.
// Undo:             none: it is listed or it is not.
// If we crash here: the earlier state or the new one; the session releases as abandoned, its bitmaps are merged back.
// Time bound:       that of the repository.
absl::Status SnapshotRun::Commit() {
  Show("commit");
  KeepThawHooks();
  manifest_.mutable_drain()->set_duration_us(
      static_cast<uint64_t>(absl::ToInt64Microseconds(Clock::Real().Monotonic() - drain_started_)));
  STILL_ASSIGN_OR_RETURN(std::string id, writer_->Commit(manifest_));
  STILL_ASSIGN_OR_RETURN(manifest_, repository_.FindSnapshot(id));
  return absl::OkStatus();
}

// Thaw hooks run on after the thaw; most have ended by now. Those that have not are kept as unfinished.
void SnapshotRun::KeepThawHooks() {
  auto& hooks = *manifest_.mutable_consistency()->mutable_hooks();
  auto unfinished = [](const manifestpb::Consistency::Hook& hook) { return hook.unfinished(); };
  if (std::none_of(hooks.begin(), hooks.end(), unfinished)) return;
  std::optional<sessionpb::ThawHooks> told = stream_->WaitThawHooks(kThawHooksPatience);
  if (!told.has_value()) return;
  hooks.erase(std::remove_if(hooks.begin(), hooks.end(), unfinished), hooks.end());
  hooks.MergeFrom(told->hooks());
}

// Needs:            a committed snapshot.
// Does:             lets the session take its pins away. A failure costs the next snapshot its bitmaps, not this one.
// Undo:             none.
// If we crash here: the broken life line does the same, as abandoned.
// Time bound:       60 s.
void SnapshotRun::Release() {
  if (absl::Status status = stream_->End(/*committed=*/true); !status.ok()) {
    LogWarning("the session did not release the capture cleanly", {{"error", status.ToString()}});
  }
}

// Of several errors about one thing the first in time: a full repository breaks our end of the stream, which the
// session then reports as a lost reader; a session that gives up closes its end, which we then see as a broken socket; a
// host's disk that is full breaks the pins, of which the session says why.
absl::Status SnapshotRun::Cause(const absl::Status& seen) {
  if (memory_ != nullptr && !memory_->own_failure().ok()) return memory_->own_failure();
  bool effect = absl::IsUnavailable(seen) || absl::IsDataLoss(seen) || absl::IsCancelled(seen) || absl::IsAborted(seen);
  return seen.ok() || effect ? stream_->FailureOr(seen) : seen;
}

absl::Status SnapshotRun::StoreBootFiles() {
  if (!session_.config.machine().direct_kernel()) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(
      StoreFile(*writer_, session_.config.kernel(), ImageOptionsFor("kernel", Image::ROLE_KERNEL, 0)));
  Keep("kernel").set_role(Image::ROLE_KERNEL);
  if (session_.config.initrd().empty()) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(
      StoreFile(*writer_, session_.config.initrd(), ImageOptionsFor("initrd", Image::ROLE_INITRD, 0)));
  Keep("initrd").set_role(Image::ROLE_INITRD);
  return absl::OkStatus();
}

absl::Status SnapshotRun::DrainDisks() {
  uint64_t read = 0;
  for (const sessionpb::PinnedDisk& disk : stream_->pinned().disks()) {
    if (!disk.full_read_reason().empty()) {
      LogInfo("disk is read in full", {{"disk", disk.name()}, {"reason", disk.full_read_reason()}});
    }
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image,
                           writer_->BeginImage(ImageOptionsFor(disk.name(), Image::ROLE_DISK, disk.size())));
    STILL_ASSIGN_OR_RETURN(DrainedDisk drained, DrainDisk({.socket = disk.nbd_socket(),
                                                           .export_name = disk.nbd_export(),
                                                           .dirty_context = disk.dirty_context(),
                                                           .pace = options_.pace},
                                                          disk.size(), *image, [&](uint64_t done) {
                                                            Show(absl::StrCat("drain ", disk.name()), done,
                                                                 disk.size());
                                                          }));
    STILL_RETURN_IF_ERROR(image->Finish());
    Image& kept = Keep(disk.name());
    kept.set_role(Image::ROLE_DISK);
    kept.set_bitmap(disk.bitmap());
    kept.set_bytes_read(drained.bytes_read);
    for (const sessionpb::DiskFile& file : session_.config.disks()) {
      if (file.name() == disk.name()) kept.set_source_format(file.format());
    }
    read += drained.bytes_read;
  }
  manifest_.mutable_drain()->set_bytes_read(read);
  return absl::OkStatus();
}

absl::Status SnapshotRun::StoreDeviceState(const std::string& content) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageWriter> image,
                         writer_->BeginImage(ImageOptionsFor("devices", Image::ROLE_DEVICE_STATE, content.size())));
  STILL_RETURN_IF_ERROR(image->Write(0, content));
  STILL_RETURN_IF_ERROR(image->Finish());
  Keep("devices").set_role(Image::ROLE_DEVICE_STATE);
  return absl::OkStatus();
}

store::ImageOptions SnapshotRun::ImageOptionsFor(const std::string& name, Image::Role role, uint64_t size) const {
  store::ImageOptions options{.name = name, .role = role, .size = size};
  const Image* base = parent_.has_value() ? FindImage(*parent_, name) : nullptr;
  if (role == Image::ROLE_RAM && memory_base_.has_value()) base = &memory_base_->image;
  if (base != nullptr) {
    options.parent_root = base->root();
    options.parent_size = base->size();
  }
  return options;
}

Image& SnapshotRun::Keep(const std::string& name) {
  Image& image = *manifest_.add_images();
  image.set_name(name);
  return image;
}

}  // namespace

absl::StatusOr<manifestpb::Snapshot> TakeSnapshot(const session::SessionRegistry& sessions, const std::string& session,
                                                  store::Repository& repository, const TakeOptions& options) {
  // Before anything is frozen for it.
  if (!options.name.empty()) STILL_RETURN_IF_ERROR(CheckNewName("snapshot", options.name));
  STILL_ASSIGN_OR_RETURN(session::SessionEntry entry, sessions.Find(session));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<sessionpb::SessionControl::Stub> control, sessions.Connect(session));
  STILL_ASSIGN_OR_RETURN(HostIdentity host, ReadHostIdentity(sessions.root()));
  SnapshotRun run(std::move(entry), std::move(host), std::move(control), repository, options);
  absl::StatusOr<manifestpb::Snapshot> snapshot = run.Run();
  if (!snapshot.ok()) return Annotate(snapshot.status(), absl::StrCat("snapshot of ", session));
  return snapshot;
}

}  // namespace still::snapshot
