#include "session/hypervisor/qemu/capture_sweep.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "session/hypervisor/qemu/qemu_command.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr char kExportPrefix[] = "still-";

std::string FilterPrefix(size_t disk) { return absl::StrCat(DiskNode(disk), "-cbw-"); }
std::string FleecePrefix(size_t disk) { return absl::StrCat(DiskNode(disk), "-fleece-"); }
std::string SnapshotPrefix(size_t disk) { return absl::StrCat(DiskNode(disk), "-snap-"); }

// One sweep. Of several errors the first is told; only silence ends it early.
class Sweep {
 public:
  explicit Sweep(const QemuMachine& machine) : machine_(machine) {}
  absl::Status Run();

 private:
  absl::StatusOr<json> Ask(absl::string_view command, const json& arguments) {
    return machine_.qmp->Execute(command, arguments, machine_.command_deadline);
  }
  // Only silence is an error.
  absl::Status Keep(const absl::Status& status) {
    if (absl::IsDeadlineExceeded(status)) return status;
    result_ = FirstError(result_, status);
    return absl::OkStatus();
  }
  absl::Status WithdrawExport(const std::string& id);
  absl::Status RemoveNodes(const json& nodes, const std::string& prefix);
  absl::Status TakeFilterOut(size_t disk);

  const QemuMachine& machine_;
  absl::Status result_;
};

absl::Status Sweep::Run() {
  STILL_ASSIGN_OR_RETURN(json exports, Ask("query-block-exports", json::object()));
  for (const json& one : exports) {
    const std::string id = TextAt(one, "id");
    if (absl::StartsWith(id, kExportPrefix)) STILL_RETURN_IF_ERROR(Keep(WithdrawExport(id)));
  }
  STILL_ASSIGN_OR_RETURN(json nodes, Ask("query-named-block-nodes", {{"flat", true}}));
  for (size_t disk = 0; disk < machine_.disks.size(); ++disk) {
    // From the reader's end to the guest's: QEMU removes nothing that another node uses.
    STILL_RETURN_IF_ERROR(RemoveNodes(nodes, SnapshotPrefix(disk)));
    STILL_RETURN_IF_ERROR(Keep(TakeFilterOut(disk)));
    STILL_RETURN_IF_ERROR(RemoveNodes(nodes, FilterPrefix(disk)));
    STILL_RETURN_IF_ERROR(RemoveNodes(nodes, FleecePrefix(disk)));
  }
  // An error means that there is none.
  absl::Status stopped = Ask("nbd-server-stop", json::object()).status();
  if (absl::IsDeadlineExceeded(stopped)) return stopped;
  STILL_RETURN_IF_ERROR(Keep(PinPoolOf(machine_).Sweep()));
  return result_;
}

absl::Status Sweep::WithdrawExport(const std::string& id) {
  QmpSubscription deleted = machine_.qmp->Subscribe({"BLOCK_EXPORT_DELETED"});
  // "hard": QEMU may not have seen yet that its clients have gone.
  STILL_RETURN_IF_ERROR(Ask("block-export-del", {{"id", id}, {"mode", "hard"}}).status());
  return deleted.Next(machine_.command_deadline).status();
}

absl::Status Sweep::RemoveNodes(const json& nodes, const std::string& prefix) {
  for (const json& node : nodes) {
    const std::string name = TextAt(node, "node-name");
    if (!absl::StartsWith(name, prefix)) continue;
    STILL_RETURN_IF_ERROR(Keep(Ask("blockdev-del", {{"node-name", name}}).status()));
  }
  return absl::OkStatus();
}

absl::Status Sweep::TakeFilterOut(size_t disk) {
  STILL_ASSIGN_OR_RETURN(json drive, Ask("qom-get", {{"path", DiskBackendPath(disk)}, {"property", "drive"}}));
  if (!drive.is_string() || !absl::StartsWith(drive.get<std::string>(), FilterPrefix(disk))) return absl::OkStatus();
  return Ask("qom-set", DriveIs(disk, DiskNode(disk))).status();
}

}  // namespace

std::string FilterNode(size_t disk, const std::string& capture_id) {
  return absl::StrCat(FilterPrefix(disk), capture_id);
}
std::string FleeceNode(size_t disk, const std::string& capture_id) {
  return absl::StrCat(FleecePrefix(disk), capture_id);
}
std::string SnapshotNode(size_t disk, const std::string& capture_id) {
  return absl::StrCat(SnapshotPrefix(disk), capture_id);
}
std::string ExportId(const std::string& disk, const std::string& capture_id) {
  return absl::StrCat(kExportPrefix, disk, "-", capture_id);
}

json DriveIs(size_t disk, const std::string& node) {
  return {{"path", DiskBackendPath(disk)}, {"property", "drive"}, {"value", node}};
}

absl::Status SweepCaptures(const QemuMachine& machine) {
  absl::Status swept = Sweep(machine).Run();
  // A QEMU that is gone has given it back already, except for files.
  return machine.qmp->connected() ? Annotate(swept, "give back what a capture made") : absl::OkStatus();
}

}  // namespace still::session
