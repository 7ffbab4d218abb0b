#include "session/describe_session.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::session {
namespace {

void DescribeLazyDisks(Session& session, sessionpb::DescribeResponse& out) {
  if (session.vm().lazy_disks() == nullptr) return;
  absl::StatusOr<std::vector<LazyDiskState>> states = session.vm().lazy_disks()->Query();
  if (!states.ok()) {
    // Nobody may take a VM that does not answer for one that needs the repository no more.
    for (const sessionpb::DiskFile& disk : session.config().disks()) {
      if (!disk.backing_export().empty()) out.add_lazy_disks()->set_name(disk.name());
    }
    return;
  }
  for (const LazyDiskState& state : *states) {
    if (state.complete) continue;
    sessionpb::LazyDisk& disk = *out.add_lazy_disks();
    disk.set_name(state.name);
    disk.set_size(state.size);
    disk.set_hydrated(state.hydrated);
    disk.set_hydrating(state.hydrating);
  }
}

}  // namespace

sessionpb::DescribeResponse DescribeSession(Session& session) {
  sessionpb::DescribeResponse out;
  out.set_name(session.config().name());
  out.set_id(session.config().id());
  *out.mutable_machine() = session.machine();
  const VmDescription& description = session.vm().description();
  out.set_hypervisor(absl::StrCat(description.hypervisor, " ", description.version));
  out.set_accelerator(description.accelerator);
  out.set_pid(description.pid);
  out.mutable_hypervisor_command()->Assign(description.command.begin(), description.command.end());
  out.set_cmdline(session.cmdline());
  out.set_console_log(JoinPath(session.directory(), "console.log"));
  out.set_started_unix_ns(absl::ToUnixNanos(session.started()));
  out.set_restored_from(session.config().origin_snapshot());
  if (auto identity = session.identity(); identity.has_value()) *out.mutable_identity() = *std::move(identity);
  if (const Session::Reboots reboots = session.reboots(); reboots.count > 0) {
    out.set_reboots(reboots.count);
    out.set_last_reboot_unix_ns(absl::ToUnixNanos(reboots.last));
  }
  const Capabilities& capabilities = session.vm().capabilities();
  out.mutable_capabilities()->set_memory(capabilities.memory);
  out.mutable_capabilities()->set_background_memory(capabilities.background_memory);
  out.mutable_capabilities()->set_background_memory_reason(capabilities.background_memory_reason);
  out.mutable_capabilities()->set_engine_memory(capabilities.engine_memory);
  out.mutable_capabilities()->set_engine_memory_reason(capabilities.engine_memory_reason);
  out.mutable_capabilities()->set_disk_pin(capabilities.disk_pin);
  out.mutable_capabilities()->set_incremental_disk(capabilities.incremental_disk);
  GuestLink* link = session.link();
  out.set_vsock_backend("off");
  if (link != nullptr) {
    out.set_vsock_port(link->vsock().port());
    out.set_guest_cid(link->vsock().guest_cid());
    out.set_vsock_backend(std::string(link->vsock().backend()));
  }
  if (std::optional<SessionEnd> end = session.WaitFor(absl::ZeroDuration())) {
    out.set_state(sessionpb::DescribeResponse::ENDED);
    *out.mutable_end() = *end;
    return out;
  }
  out.set_disk_trouble(session.keeper().trouble());
  out.set_found_paused(session.keeper().found_paused());
  DescribeLazyDisks(session, out);
  absl::StatusOr<bool> paused = session.vm().IsPaused();
  out.set_state(paused.ok() && *paused ? sessionpb::DescribeResponse::PAUSED : sessionpb::DescribeResponse::RUNNING);
  if (link == nullptr || !link->ever_connected()) return out;
  absl::StatusOr<std::shared_ptr<GuestClient>> client = link->Client(absl::Seconds(1));
  if (!client.ok()) return out;
  out.mutable_agent()->set_connected(true);
  out.mutable_agent()->set_version((*client)->init().agent_version());
  out.mutable_agent()->set_hostname((*client)->init().hostname());
  if (auto quiesce = (*client)->QuiesceStatus(absl::Seconds(2)); quiesce.ok()) {
    out.mutable_agent()->set_quiesce_state(quiesce->state());
  }
  return out;
}

}  // namespace still::session
