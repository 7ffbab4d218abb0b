#include "session/hypervisor/qemu/qemu_run_state.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {
namespace {

// QEMU, qapi/run-state.json. What a migration leaves behind when it is through is a pause that somebody must end; a guest
// that has panicked, sleeps or has shut itself down is not to be resumed.
bool IsPause(const std::string& status) { return status == "paused" || status == "postmigrate"; }

// "disk1", or a node of that disk's: "disk1-cbw-...".
bool IsNodeOfDisk(absl::string_view node, size_t index) {
  return absl::ConsumePrefix(&node, DiskNode(index)) && (node.empty() || !absl::ascii_isdigit(node[0]));
}

}  // namespace

void QemuRunState::Note(const QmpEvent& event) {
  absl::MutexLock lock(&mutex_);
  if (event.name == "RESUME") failed_ = false;
  if (event.name != "BLOCK_IO_ERROR" || TextAt(event.data, "action") != "stop") return;
  failed_ = true;
  failed_node_ = TextAt(event.data, "node-name");
  failed_write_ = TextAt(event.data, "operation") == "write";
  failed_reason_ = TextAt(event.data, "reason");
}

void QemuRunState::BeginPause(absl::Duration limit) {
  absl::MutexLock resuming(&resume_mutex_);
  absl::MutexLock lock(&mutex_);
  pause_end_ = Clock::Real().Monotonic() + limit;
}

void QemuRunState::EndPause() {
  absl::MutexLock lock(&mutex_);
  pause_end_ = absl::ZeroDuration();
}

bool QemuRunState::PausedByCapture() const { return Clock::Real().Monotonic() < pause_end_; }

std::optional<Standstill> QemuRunState::HeldBy(const std::vector<DiskConfig>& disks) {
  absl::MutexLock lock(&mutex_);
  if (!failed_) return std::nullopt;
  Standstill held{.kind = Standstill::Kind::kHeld, .write = failed_write_, .reason = failed_reason_};
  for (size_t i = 0; i < disks.size(); ++i) {
    if (IsNodeOfDisk(failed_node_, i)) held.disk = disks[i].name;
  }
  return held;
}

absl::StatusOr<std::optional<Standstill>> QemuRunState::Find(QmpClient& qmp, const std::vector<DiskConfig>& disks,
                                                             absl::Duration deadline) {
  {
    absl::MutexLock lock(&mutex_);
    if (PausedByCapture()) return std::nullopt;
  }
  STILL_ASSIGN_OR_RETURN(nlohmann::json answer, qmp.Execute("query-status", nlohmann::json::object(), deadline));
  const std::string status = TextAt(answer, "status");
  {
    absl::MutexLock lock(&mutex_);
    if (PausedByCapture()) return std::nullopt;  // It has begun meanwhile.
  }
  if (status == "io-error") return HeldBy(disks).value_or(Standstill{.kind = Standstill::Kind::kHeld});
  if (IsPause(status)) {
    return Standstill{.kind = Standstill::Kind::kPaused, .reason = absl::StrCat("run state \"", status, "\"")};
  }
  return std::nullopt;
}

absl::Status QemuRunState::Resume(QmpClient& qmp) {
  absl::MutexLock resuming(&resume_mutex_);
  {
    absl::MutexLock lock(&mutex_);
    if (PausedByCapture())
      return absl::FailedPreconditionError("a snapshot is being taken, which ends its pause itself");
  }
  return ResumeVcpus(qmp);
}

}  // namespace still::session
