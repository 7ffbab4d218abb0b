#include "session/hypervisor/qemu/qemu_machine.h"

#include "absl/strings/match.h"
#include "base/clock.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr absl::Duration kResumeRetry = absl::Milliseconds(2);

}  // namespace

absl::StatusOr<bool> QueryPaused(QmpClient& qmp, absl::Duration deadline) {
  STILL_ASSIGN_OR_RETURN(json status, qmp.Execute("query-status", json::object(), deadline));
  const json& running = Member(status, "running");
  if (!running.is_boolean()) return absl::InternalError("query-status: the answer has no run state");
  return !running.get<bool>();
}

PinPool PinPoolOf(const QemuMachine& machine) {
  return PinPool(machine.directory, machine.sessions, machine.pin_pool_limit);
}

absl::Status ResumeVcpus(QmpClient& qmp, absl::Duration deadline) {
  const absl::Duration end = Clock::Real().Monotonic() + deadline;
  for (;;) {
    absl::Status status = qmp.Run("cont", json::object(), deadline);
    if (status.ok() || !absl::StrContains(status.message(), "not finalized")) return status;
    if (Clock::Real().Monotonic() > end) return status;
    Clock::Real().Sleep(kResumeRetry);
  }
}

absl::Status SetMigrationCapabilities(QmpClient& qmp, const std::vector<std::pair<std::string, bool>>& capabilities,
                                      absl::Duration deadline) {
  json wanted = json::array();
  for (const auto& [name, on] : capabilities) wanted.push_back({{"capability", name}, {"state", on}});
  return qmp.Run("migrate-set-capabilities", {{"capabilities", std::move(wanted)}}, deadline);
}

}  // namespace still::session
