#include "session/hypervisor/qemu/qemu_disk.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "session/hypervisor/qemu/capture_bitmaps.h"
#include "session/hypervisor/qemu/capture_sweep.h"
#include "session/hypervisor/qemu/qemu_command.h"

namespace still::session {
namespace {

using nlohmann::json;

// The store's chunk size: a smaller grain would find no smaller difference.
constexpr int64_t kBitmapGrain = 64 << 10;
// A guest's write that cannot be preceded by its copy within this time breaks the snapshot instead of waiting on.
constexpr int kCopyTimeoutSeconds = 5;
// One that the relay has just closed may still count.
constexpr int kMaxConnections = 2 * NbdRelay::kMaxClients;
constexpr char kServerFd[] = "still-nbd";
// What readers connect to, and what the relay connects to.
constexpr char kSocketName[] = "nbd.sock";
constexpr char kServerSocketName[] = "nbd-qemu.sock";

// How often all sessions' files are looked at.
constexpr absl::Duration kPoolInterval = absl::Seconds(1);

bool IsGone(const QemuMachine& machine) { return !machine.qmp->connected(); }

// Its own directory is all that QEMU may open a new file in.
absl::Status GiveToQemu(const QemuMachine& machine, const PinPool::File& file) {
  if (!machine.user.has_value()) return absl::OkStatus();
  if (::fchown(file.lock.get(), machine.user->uid, machine.user->gid) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("give ", file.path, " to QEMU"));
}

std::string NameForQemu(const QemuMachine& machine, const std::string& path) {
  if (!machine.user.has_value()) return path;
  return JoinPath(machine.directory_name, std::string(std::filesystem::path(path).filename()));
}

// The entry of one bitmap in query-named-block-nodes; null when there is none.
const json& FindBitmap(const json& node, const std::string& name) {
  for (const json& bitmap : Member(node, "dirty-bitmaps")) {
    if (TextAt(bitmap, "name") == name) return bitmap;
  }
  return Member(node, "");
}

// Empty when the bitmap holds every write since it began.
std::string WhyUnusable(const json& node, const std::string& name) {
  if (!IsCaptureBitmap(name)) return absl::StrCat("bitmap \"", name, "\" is not one of ours");
  const json& bitmap = FindBitmap(node, name);
  if (bitmap.is_null()) return absl::StrCat("bitmap ", name, " is not on this disk any more");
  if (Member(bitmap, "inconsistent") == true) return absl::StrCat("bitmap ", name, " was not stored at a crash");
  if (Member(bitmap, "recording") != true) return absl::StrCat("bitmap ", name, " did not record all the time");
  if (Member(bitmap, "busy") == true) return absl::StrCat("bitmap ", name, " is in use");
  return "";
}

}  // namespace

absl::Status DiskPins::Prepare(const Options& options) {
  capture_id_ = options.capture_id;
  repository_id_ = options.repository_id;
  space_limit_ = options.space_limit;
  STILL_RETURN_IF_ERROR(Describe(options));
  if (pins_.empty()) return absl::OkStatus();
  for (PinnedDisk& pin : pins_) {
    if (pin.disk->read_only) continue;
    STILL_RETURN_IF_ERROR(BeginBitmap(pin));
    STILL_ASSIGN_OR_RETURN(pin.fleece,
                           PinPoolOf(machine_).Make(absl::StrCat(capture_id_, "-", pin.disk->name), pin.size));
    STILL_RETURN_IF_ERROR(GiveToQemu(machine_, pin.fleece));
    if (options.filters_before_pause) STILL_RETURN_IF_ERROR(AddFilter(pin, machine_.command_deadline));
  }
  return StartServer(options.stall_limit);
}

absl::Status DiskPins::Check() {
  if (relay_ != nullptr) STILL_RETURN_IF_ERROR(relay_->status());
  const PinPool pool = PinPoolOf(machine_);
  if (space_limit_ > 0) {
    if (const uint64_t used = pool.own_bytes(); used > space_limit_) {
      return absl::ResourceExhaustedError(absl::StrCat("the guest has overwritten ", used >> 20,
                                                       " MiB since the point, more than the ", space_limit_ >> 20,
                                                       " MiB that may be kept for this snapshot"));
    }
  }
  const absl::Duration now = Clock::Real().Monotonic();
  if (now - pool_checked_at_ < kPoolInterval) return absl::OkStatus();
  pool_checked_at_ = now;
  return pool.Check();
}

absl::Status DiskPins::Describe(const Options& options) {
  STILL_ASSIGN_OR_RETURN(json nodes,
                         machine_.qmp->Execute("query-named-block-nodes", {{"flat", true}}, machine_.command_deadline));
  for (size_t i = 0; i < machine_.disks.size(); ++i) {
    PinnedDisk pin{.index = i, .disk = &machine_.disks[i]};
    auto node = std::find_if(nodes.begin(), nodes.end(),
                             [i](const json& entry) { return TextAt(entry, "node-name") == DiskNode(i); });
    if (node == nodes.end()) return absl::InternalError(absl::StrCat("disk ", pin.disk->name, " has no block node"));
    const json& size = Member(Member(*node, "image"), "virtual-size");
    if (!size.is_number_unsigned()) return absl::InternalError(absl::StrCat("disk ", pin.disk->name, " has no size"));
    pin.size = size.get<uint64_t>();
    for (const auto& [disk, bitmap] : options.base_bitmaps) {
      if (disk != pin.disk->name) continue;
      pin.full_read_reason = WhyUnusable(*node, bitmap);
      if (pin.full_read_reason.empty()) pin.base_bitmap = bitmap;
    }
    pins_.push_back(std::move(pin));
  }
  return absl::OkStatus();
}

absl::Status DiskPins::BeginBitmap(PinnedDisk& pin) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> on_disk, BitmapsOn(pin.index));
  if (absl::Status removed = RemoveBitmaps(pin, SurplusBitmaps(on_disk, pin.base_bitmap)); !removed.ok()) {
    LogWarning("bitmaps that are too many stay", {{"disk", pin.disk->name}, {"error", removed.ToString()}});
  }
  json arguments = {{"node", DiskNode(pin.index)},
                    {"name", BitmapName(repository_id_, absl::Now(), capture_id_)},
                    {"granularity", kBitmapGrain},
                    {"persistent", pin.disk->format == "qcow2"}};
  absl::Status added = machine_.qmp->Run("block-dirty-bitmap-add", arguments, machine_.command_deadline);
  if (absl::IsFailedPrecondition(added) && pin.disk->format == "qcow2") {
    // Old qcow2 files (compat=0.10) cannot hold bitmaps; one that lasts as long as the VM is better than none.
    arguments["persistent"] = false;
    added = machine_.qmp->Run("block-dirty-bitmap-add", arguments, machine_.command_deadline);
  }
  STILL_RETURN_IF_ERROR(Annotate(added, absl::StrCat("disk ", pin.disk->name)));
  pin.new_bitmap = arguments["name"].get<std::string>();
  return absl::OkStatus();
}

absl::Status DiskPins::AddFilter(PinnedDisk& pin, absl::Duration deadline) {
  json fleece = {{"driver", "file"}, {"filename", NameForQemu(machine_, pin.fleece.path)}, {"locking", "off"}};
  if (pin.fleece.qcow2) fleece = {{"driver", "qcow2"}, {"file", std::move(fleece)}};
  fleece["node-name"] = FleeceNode(pin.index, capture_id_);
  fleece["discard"] = "unmap";
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", fleece, deadline));
  json filter = {{"driver", "copy-before-write"},    {"node-name", FilterNode(pin.index, capture_id_)},
                 {"file", DiskNode(pin.index)},      {"target", FleeceNode(pin.index, capture_id_)},
                 {"on-cbw-error", "break-snapshot"}, {"cbw-timeout", kCopyTimeoutSeconds}};
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", filter, deadline));
  pin.has_filter = true;
  return absl::OkStatus();
}

absl::Status DiskPins::Pin(const PauseBudget& budget, std::vector<std::string>& commands) {
  for (PinnedDisk& pin : pins_) {
    if (pin.disk->read_only) continue;
    if (!pin.has_filter) {
      commands.insert(commands.end(), {"blockdev-add", "blockdev-add"});
      STILL_ASSIGN_OR_RETURN(absl::Duration left, budget.Left());
      STILL_RETURN_IF_ERROR(AddFilter(pin, left));
    }
    commands.push_back("qom-set");
    STILL_ASSIGN_OR_RETURN(absl::Duration left, budget.Left());
    json drive = DriveIs(pin.index, FilterNode(pin.index, capture_id_));
    STILL_RETURN_IF_ERROR(machine_.qmp->Run("qom-set", drive, left));
    pin.inserted = true;
  }
  return absl::OkStatus();
}

absl::Status DiskPins::StartServer(absl::Duration stall_limit) {
  server_path_ = JoinPath(machine_.directory, kServerSocketName);
  // We bind: QEMU's own addresses end at 107 bytes, and its socket would be world-connectable for a moment.
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(server_path_, NbdRelay::kMaxClients));
  STILL_RETURN_IF_ERROR(
      machine_.qmp->RunWithFd("getfd", {{"fdname", kServerFd}}, listening.get(), machine_.command_deadline));
  json address = {{"type", "fd"}, {"data", {{"str", kServerFd}}}};
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("nbd-server-start", {{"addr", address}, {"max-connections", kMaxConnections}},
                                          machine_.command_deadline));
  STILL_ASSIGN_OR_RETURN(relay_, NbdRelay::Start({.path = JoinPath(machine_.directory, kSocketName),
                                                  .server_path = server_path_,
                                                  .stall_limit = stall_limit}));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<PinnedDiskExport>> DiskPins::Export() {
  std::vector<PinnedDiskExport> exports;
  for (PinnedDisk& pin : pins_) {
    STILL_RETURN_IF_ERROR(Annotate(ExportOne(pin), absl::StrCat("export disk ", pin.disk->name)));
    PinnedDiskExport exported{.name = pin.disk->name,
                              .size = pin.size,
                              .nbd_socket = JoinPath(machine_.directory, kSocketName),
                              .nbd_export = pin.disk->name,
                              .full_read_reason = pin.full_read_reason,
                              .bitmap = pin.new_bitmap};
    if (!pin.base_bitmap.empty()) exported.dirty_context = absl::StrCat("qemu:dirty-bitmap:", pin.base_bitmap);
    exports.push_back(std::move(exported));
  }
  return exports;
}

absl::Status DiskPins::ExportOne(PinnedDisk& pin) {
  json arguments = {{"type", "nbd"},
                    {"id", ExportId(pin.disk->name, capture_id_)},
                    {"node-name", DiskNode(pin.index)},
                    {"name", pin.disk->name},
                    {"writable", false}};
  if (pin.inserted) {
    // Read-only, or QEMU would refuse to export a bitmap that is still recording with it.
    json snapshot = {{"driver", "snapshot-access"},
                     {"node-name", SnapshotNode(pin.index, capture_id_)},
                     {"file", FilterNode(pin.index, capture_id_)},
                     {"read-only", true}};
    STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", snapshot, machine_.command_deadline));
    arguments["node-name"] = SnapshotNode(pin.index, capture_id_);
  }
  if (!pin.base_bitmap.empty()) {
    arguments["bitmaps"] = json::array({{{"node", DiskNode(pin.index)}, {"name", pin.base_bitmap}}});
  }
  return machine_.qmp->Run("block-export-add", arguments, machine_.command_deadline);
}

absl::Status DiskPins::Release(bool committed) {
  // Before anything that drains block nodes: QEMU would wait for a reader that hangs, and the guest for QEMU.
  relay_.reset();
  for (PinnedDisk& pin : pins_) pin.fleece.lock.Reset();
  absl::Status result = SweepCaptures(machine_);
  for (const PinnedDisk& pin : pins_) {
    // Nobody answers: the bitmaps are swept with the next ones.
    if (absl::IsDeadlineExceeded(result)) break;
    result = FirstError(result, Annotate(SettleBitmaps(pin, committed), absl::StrCat("disk ", pin.disk->name)));
  }
  if (!server_path_.empty()) result = FirstError(result, RemoveFile(server_path_));
  pins_.clear();
  return IsGone(machine_) ? absl::OkStatus() : result;
}

absl::StatusOr<std::vector<std::string>> DiskPins::BitmapsOn(size_t index) {
  STILL_ASSIGN_OR_RETURN(json nodes,
                         machine_.qmp->Execute("query-named-block-nodes", {{"flat", true}}, machine_.command_deadline));
  std::vector<std::string> names;
  for (const json& node : nodes) {
    if (TextAt(node, "node-name") != DiskNode(index)) continue;
    for (const json& bitmap : Member(node, "dirty-bitmaps")) names.push_back(TextAt(bitmap, "name"));
  }
  return names;
}

absl::Status DiskPins::RemoveBitmaps(const PinnedDisk& pin, const std::vector<std::string>& names) {
  absl::Status result;
  for (const std::string& name : names) {
    json bitmap = {{"node", DiskNode(pin.index)}, {"name", name}};
    result = FirstError(result, machine_.qmp->Run("block-dirty-bitmap-remove", bitmap, machine_.command_deadline));
  }
  return result;
}

// Committed: the new bitmap is the next capture's base, and the repository's older ones are of no more use. Abandoned: the
// base has recorded all the while, so the new one just goes.
absl::Status DiskPins::SettleBitmaps(const PinnedDisk& pin, bool committed) {
  if (pin.new_bitmap.empty()) return absl::OkStatus();
  if (!committed) return RemoveBitmaps(pin, {pin.new_bitmap});
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> on_disk, BitmapsOn(pin.index));
  return RemoveBitmaps(pin, SupersededBitmaps(on_disk, pin.new_bitmap));
}

}  // namespace still::session
