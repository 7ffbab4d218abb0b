#include "session/hypervisor/qemu/qemu_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "session/hypervisor/qemu/qemu_command.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr char kBitmapPrefix[] = "still-";
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

constexpr uint64_t kStatBlock = 512;  // stat(2), st_blocks.

absl::StatusOr<uint64_t> FreeSpace(const std::string& directory) {
  struct statvfs space {};
  if (::statvfs(directory.c_str(), &space) != 0) return ErrnoStatus(errno, directory);
  return space.f_bavail * space.f_frsize;
}

std::string FilterNode(size_t index) { return absl::StrCat(DiskNode(index), "-cbw"); }
std::string FleeceNode(size_t index) { return absl::StrCat(DiskNode(index), "-fleece"); }
std::string SnapshotNode(size_t index) { return absl::StrCat(DiskNode(index), "-snapshot"); }

json SetDrive(size_t index, const std::string& node) {
  return {{"path", DiskBackendPath(index)}, {"property", "drive"}, {"value", node}};
}

bool IsGone(const QemuMachine& machine) { return !machine.qmp->connected(); }

// The entry of one bitmap in query-named-block-nodes; null when there is none.
const json& FindBitmap(const json& node, const std::string& name) {
  for (const json& bitmap : Member(node, "dirty-bitmaps")) {
    if (TextAt(bitmap, "name") == name) return bitmap;
  }
  return Member(node, "");
}

// Empty when the bitmap holds every write since it began.
std::string WhyUnusable(const json& node, const std::string& name) {
  if (!absl::StartsWith(name, kBitmapPrefix)) return absl::StrCat("bitmap \"", name, "\" is not one of ours");
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
  space_limit_ = options.space_limit;
  if (space_limit_ == 0) {
    STILL_ASSIGN_OR_RETURN(uint64_t free, FreeSpace(machine_.directory));
    space_limit_ = free / 2;
  }
  STILL_RETURN_IF_ERROR(Describe(options));
  if (pins_.empty()) return absl::OkStatus();
  for (PinnedDisk& pin : pins_) {
    if (pin.disk->read_only) continue;
    STILL_RETURN_IF_ERROR(BeginBitmap(pin));
    STILL_ASSIGN_OR_RETURN(OwnedFd fleece, OpenFile(pin.fleece_path, O_RDWR | O_CREAT | O_EXCL));
    if (::ftruncate(fleece.get(), static_cast<off_t>(pin.size)) != 0) {
      return ErrnoStatus(errno, absl::StrCat("make ", pin.fleece_path));
    }
    if (options.filters_before_pause) STILL_RETURN_IF_ERROR(AddFilter(pin, kCommandDeadline));
  }
  return StartServer(options.stall_limit);
}

absl::Status DiskPins::Check() const {
  if (relay_ != nullptr) STILL_RETURN_IF_ERROR(relay_->status());
  uint64_t used = 0;
  for (const PinnedDisk& pin : pins_) {
    struct stat info {};
    if (::stat(pin.fleece_path.c_str(), &info) == 0) used += static_cast<uint64_t>(info.st_blocks) * kStatBlock;
  }
  if (used <= space_limit_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the guest has overwritten ", used >> 20,
                                                   " MiB since the point, more than the ", space_limit_ >> 20,
                                                   " MiB that may be kept for this snapshot"));
}

absl::Status DiskPins::Describe(const Options& options) {
  STILL_ASSIGN_OR_RETURN(json nodes,
                         machine_.qmp->Execute("query-named-block-nodes", {{"flat", true}}, kCommandDeadline));
  for (size_t i = 0; i < machine_.disks.size(); ++i) {
    PinnedDisk pin{.index = i, .disk = &machine_.disks[i]};
    auto node = std::find_if(nodes.begin(), nodes.end(),
                             [i](const json& entry) { return TextAt(entry, "node-name") == DiskNode(i); });
    if (node == nodes.end()) return absl::InternalError(absl::StrCat("disk ", pin.disk->name, " has no block node"));
    const json& size = Member(Member(*node, "image"), "virtual-size");
    if (!size.is_number_unsigned()) return absl::InternalError(absl::StrCat("disk ", pin.disk->name, " has no size"));
    pin.size = size.get<uint64_t>();
    pin.fleece_path =
        JoinPath(machine_.directory, absl::StrCat("capture-", capture_id_, "-", pin.disk->name, ".fleece"));
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
  json arguments = {{"node", DiskNode(pin.index)},
                    {"name", absl::StrCat(kBitmapPrefix, capture_id_)},
                    {"granularity", kBitmapGrain},
                    {"persistent", pin.disk->format == "qcow2"}};
  absl::Status added = machine_.qmp->Run("block-dirty-bitmap-add", arguments, kCommandDeadline);
  if (!added.ok() && !IsGone(machine_) && pin.disk->format == "qcow2") {
    // Old qcow2 files (compat=0.10) cannot hold bitmaps; one that lasts as long as the VM is better than none.
    arguments["persistent"] = false;
    added = machine_.qmp->Run("block-dirty-bitmap-add", arguments, kCommandDeadline);
  }
  STILL_RETURN_IF_ERROR(Annotate(added, absl::StrCat("disk ", pin.disk->name)));
  pin.new_bitmap = arguments["name"].get<std::string>();
  return absl::OkStatus();
}

absl::Status DiskPins::AddFilter(PinnedDisk& pin, absl::Duration deadline) {
  json fleece = {{"driver", "file"},
                 {"node-name", FleeceNode(pin.index)},
                 {"filename", pin.fleece_path},
                 {"discard", "unmap"},
                 {"locking", "off"}};
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", fleece, deadline));
  pin.has_fleece = true;
  json filter = {{"driver", "copy-before-write"},    {"node-name", FilterNode(pin.index)},
                 {"file", DiskNode(pin.index)},      {"target", FleeceNode(pin.index)},
                 {"on-cbw-error", "break-snapshot"}, {"cbw-timeout", kCopyTimeoutSeconds}};
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", filter, deadline));
  pin.has_filter = true;
  return absl::OkStatus();
}

absl::Status DiskPins::Pin(absl::Duration command_deadline, std::vector<std::string>& commands) {
  auto pin_all = [&]() -> absl::Status {
    for (PinnedDisk& pin : pins_) {
      if (pin.disk->read_only) continue;
      if (!pin.has_filter) {
        commands.insert(commands.end(), {"blockdev-add", "blockdev-add"});
        STILL_RETURN_IF_ERROR(AddFilter(pin, command_deadline));
      }
      commands.push_back("qom-set");
      // Assumed to have happened even when the answer is late: it is undone either way.
      pin.inserted = true;
      STILL_RETURN_IF_ERROR(machine_.qmp->Run("qom-set", SetDrive(pin.index, FilterNode(pin.index)), command_deadline));
    }
    return absl::OkStatus();
  };
  absl::Status pinned = pin_all();
  if (pinned.ok()) return pinned;
  for (PinnedDisk& pin : pins_) {
    if (!pin.inserted) continue;
    absl::Status undone = machine_.qmp->Run("qom-set", SetDrive(pin.index, DiskNode(pin.index)), command_deadline);
    pin.inserted = !undone.ok();
  }
  return Annotate(pinned, "pin the disks");
}

absl::Status DiskPins::StartServer(absl::Duration stall_limit) {
  server_path_ = JoinPath(machine_.directory, kServerSocketName);
  // We bind: QEMU's own addresses end at 107 bytes, and its socket would be world-connectable for a moment.
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(server_path_, NbdRelay::kMaxClients));
  STILL_RETURN_IF_ERROR(machine_.qmp->RunWithFd("getfd", {{"fdname", kServerFd}}, listening.get(), kCommandDeadline));
  json address = {{"type", "fd"}, {"data", {{"str", kServerFd}}}};
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("nbd-server-start", {{"addr", address}, {"max-connections", kMaxConnections}},
                                          kCommandDeadline));
  serving_ = true;
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
                    {"id", pin.disk->name},
                    {"node-name", DiskNode(pin.index)},
                    {"name", pin.disk->name},
                    {"writable", false}};
  if (pin.inserted) {
    // Read-only, or QEMU would refuse to export a bitmap that is still recording with it.
    json snapshot = {{"driver", "snapshot-access"},
                     {"node-name", SnapshotNode(pin.index)},
                     {"file", FilterNode(pin.index)},
                     {"read-only", true}};
    STILL_RETURN_IF_ERROR(machine_.qmp->Run("blockdev-add", snapshot, kCommandDeadline));
    pin.has_snapshot = true;
    arguments["node-name"] = SnapshotNode(pin.index);
  }
  if (!pin.base_bitmap.empty()) {
    arguments["bitmaps"] = json::array({{{"node", DiskNode(pin.index)}, {"name", pin.base_bitmap}}});
  }
  STILL_RETURN_IF_ERROR(machine_.qmp->Run("block-export-add", arguments, kCommandDeadline));
  pin.exported = true;
  return absl::OkStatus();
}

absl::Status DiskPins::Release(bool committed) {
  absl::Status result;
  // Before anything that drains block nodes: QEMU would wait for a reader that hangs, and the guest for QEMU.
  relay_.reset();
  for (auto pin = pins_.rbegin(); pin != pins_.rend(); ++pin) {
    result = FirstError(result, Annotate(Withdraw(*pin), absl::StrCat("release disk ", pin->disk->name)));
    result = FirstError(result, Annotate(SettleBitmaps(*pin, committed), absl::StrCat("disk ", pin->disk->name)));
  }
  result = FirstError(result, StopServer());
  for (const PinnedDisk& pin : pins_) result = FirstError(result, RemoveFile(pin.fleece_path));
  pins_.clear();
  return IsGone(machine_) ? absl::OkStatus() : result;
}

absl::Status DiskPins::Withdraw(PinnedDisk& pin) {
  QmpClient& qmp = *machine_.qmp;
  absl::Status result;
  if (std::exchange(pin.exported, false)) {
    QmpSubscription deleted = qmp.Subscribe({"BLOCK_EXPORT_DELETED"});
    // "hard": QEMU may not have seen yet that its clients have gone.
    absl::Status asked = qmp.Run("block-export-del", {{"id", pin.disk->name}, {"mode", "hard"}}, kCommandDeadline);
    if (asked.ok()) asked = deleted.Next(kCommandDeadline).status();
    result = FirstError(result, asked);
  }
  if (std::exchange(pin.has_snapshot, false)) {
    result = FirstError(result, qmp.Run("blockdev-del", {{"node-name", SnapshotNode(pin.index)}}, kCommandDeadline));
  }
  if (std::exchange(pin.inserted, false)) {
    result = FirstError(result, qmp.Run("qom-set", SetDrive(pin.index, DiskNode(pin.index)), kCommandDeadline));
  }
  if (std::exchange(pin.has_filter, false)) {
    result = FirstError(result, qmp.Run("blockdev-del", {{"node-name", FilterNode(pin.index)}}, kCommandDeadline));
  }
  if (std::exchange(pin.has_fleece, false)) {
    result = FirstError(result, qmp.Run("blockdev-del", {{"node-name", FleeceNode(pin.index)}}, kCommandDeadline));
  }
  return result;
}

// Committed: the new bitmap is the next capture's base and every older one is of no more use. Abandoned: the base has
// recorded all the while, so the new one just goes.
absl::Status DiskPins::SettleBitmaps(PinnedDisk& pin, bool committed) {
  if (pin.new_bitmap.empty()) return absl::OkStatus();
  std::vector<std::string> obsolete;
  if (!committed) {
    obsolete.push_back(pin.new_bitmap);
  } else {
    STILL_ASSIGN_OR_RETURN(json nodes,
                           machine_.qmp->Execute("query-named-block-nodes", {{"flat", true}}, kCommandDeadline));
    for (const json& node : nodes) {
      if (TextAt(node, "node-name") != DiskNode(pin.index)) continue;
      for (const json& bitmap : Member(node, "dirty-bitmaps")) {
        std::string name = TextAt(bitmap, "name");
        if (absl::StartsWith(name, kBitmapPrefix) && name != pin.new_bitmap) obsolete.push_back(name);
      }
    }
  }
  absl::Status result;
  for (const std::string& name : obsolete) {
    json bitmap = {{"node", DiskNode(pin.index)}, {"name", name}};
    result = FirstError(result, machine_.qmp->Run("block-dirty-bitmap-remove", bitmap, kCommandDeadline));
  }
  return result;
}

absl::Status DiskPins::StopServer() {
  absl::Status result;
  if (std::exchange(serving_, false)) result = machine_.qmp->Run("nbd-server-stop", json::object(), kCommandDeadline);
  if (!server_path_.empty()) result = FirstError(result, RemoveFile(server_path_));
  return result;
}

}  // namespace still::session
