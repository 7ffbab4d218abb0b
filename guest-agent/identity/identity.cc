#include "guest-agent/identity/identity.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/random.h"
#include "guest-agent/hooks.h"

namespace still::agent {
namespace {

constexpr size_t kMaxIdBytes = 64;
constexpr size_t kMinEntropyBytes = 32;
constexpr size_t kMaxEntropyBytes = 1024;
constexpr size_t kMaxHostNameBytes = 64;
constexpr int kMaxNics = 16;
constexpr uint32_t kDefaultHookTimeoutMs = 10000;
constexpr uint32_t kMaxHookTimeoutMs = 600000;
// 2000-01-01: no host's clock is before it, and a guest that believes it is would refuse every certificate.
constexpr int64_t kOldestWallNs = 946684800LL * 1000000000LL;

bool IsHostName(absl::string_view name) {
  auto allowed = [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.'; };
  return name.size() <= kMaxHostNameBytes && std::all_of(name.begin(), name.end(), allowed) &&
         (name.empty() || (absl::ascii_isalnum(static_cast<unsigned char>(name.front())) &&
                           absl::ascii_isalnum(static_cast<unsigned char>(name.back()))));
}

absl::Status Validate(const pb::AdoptIdentityRequest& request) {
  if (request.restore_id().empty() || request.restore_id().size() > kMaxIdBytes) {
    return absl::InvalidArgumentError("identity: restore_id must have 1 to 64 bytes");
  }
  if (request.entropy().size() < kMinEntropyBytes || request.entropy().size() > kMaxEntropyBytes) {
    return absl::InvalidArgumentError("identity: entropy must have 32 to 1,024 bytes");
  }
  if (request.wall_ns() != 0 && request.wall_ns() < kOldestWallNs) {
    return absl::InvalidArgumentError("identity: the host's clock is not set");
  }
  if (!IsHostName(request.hostname())) return absl::InvalidArgumentError("identity: not a host name");
  if (request.nics_size() > kMaxNics) return absl::InvalidArgumentError("identity: too many network cards");
  for (const pb::NicIdentity& nic : request.nics()) {
    STILL_RETURN_IF_ERROR(ParseMac(nic.old_mac()).status());
    STILL_RETURN_IF_ERROR(ParseMac(nic.new_mac()).status());
  }
  if (request.hook_timeout_ms() > kMaxHookTimeoutMs)
    return absl::InvalidArgumentError("identity: hook timeout too long");
  return absl::OkStatus();
}

// As systemd makes them: a random UUID's digits.
std::string NewMachineId() {
  std::string id = RandomUuid();
  std::erase(id, '-');
  return id;
}

}  // namespace

absl::StatusOr<CommandOutput> IdentityAdopter::Parts::RunInGuest(std::vector<std::string> argv,
                                                                 absl::Duration timeout) {
  return RunCommand({.argv = std::move(argv)}, timeout);
}

void IdentityAdopter::Step(pb::AdoptIdentityResponse& response, const char* name,
                           const std::function<StepResult()>& run) {
  absl::Duration start = parts_.clock.Monotonic();
  StepResult result = run();
  pb::IdentityStep& step = *response.add_steps();
  step.set_name(name);
  step.set_outcome(result.outcome);
  step.set_detail(absl::CHexEscape(result.detail));
  step.set_duration_us(static_cast<uint64_t>(absl::ToInt64Microseconds(parts_.clock.Monotonic() - start)));
  LogInfo("identity",
          {{"step", name}, {"outcome", pb::IdentityStep::Outcome_Name(result.outcome)}, {"detail", result.detail}});
}

absl::Status IdentityAdopter::MixEntropy(const pb::AdoptIdentityRequest& request) {
  // The id and the time make the states of two restores differ even if a host sent the same bytes twice.
  std::string entropy = absl::StrCat(request.entropy(), request.restore_id(), request.wall_ns());
  absl::Status status = parts_.kernel.MixEntropy(entropy);
  if (status.ok()) return status;
  return absl::InternalError(absl::StrCat("identity: the random generator was not reseeded: ", status.message()));
}

StepResult IdentityAdopter::SetClock(const pb::AdoptIdentityRequest& request, absl::Duration received) {
  if (request.wall_ns() == 0) return StepResult::Skipped("not asked for");
  absl::Time before = parts_.clock.Now();
  absl::Time now = absl::FromUnixNanos(request.wall_ns()) + (parts_.clock.Monotonic() - received);
  if (absl::Status status = parts_.kernel.SetWallClock(now); !status.ok()) return StepResult::Of(status);
  return StepResult::Done(absl::StrCat("stepped by ", absl::FormatDuration(now - before)));
}

StepResult IdentityAdopter::SetHostName(const std::string& name) {
  if (name.empty()) return StepResult::Skipped("not asked for");
  std::string old_name = parts_.kernel.HostName().value_or("");
  absl::Status status = parts_.kernel.SetHostName(name);
  return StepResult::Of(FirstError(status, files_.SetHostName(old_name, name)));
}

StepResult IdentityAdopter::SetMacs(const pb::AdoptIdentityRequest& request) {
  absl::Status status;
  std::vector<std::string> changed;
  for (const pb::NicIdentity& nic : request.nics()) {
    std::string interface = files_.InterfaceWithMac(nic.old_mac());
    if (interface.empty()) {
      status = FirstError(status, absl::NotFoundError(absl::StrCat(nic.old_mac(), ": no interface has this address")));
      continue;
    }
    absl::Status one = parts_.kernel.SetMac(interface, nic.new_mac());
    if (one.ok()) changed.push_back(absl::StrCat(interface, " is ", nic.new_mac()));
    status = FirstError(status, one);
  }
  // After the addresses: clients that are restarted must see the new ones.
  StepResult dhcp = files_.ForgetDhcpIdentity();
  if (!status.ok()) return StepResult::Of(status);
  changed.push_back(dhcp.detail);
  return {dhcp.outcome, absl::StrJoin(changed, "; ")};
}

StepResult IdentityAdopter::RunHooks(const pb::AdoptIdentityRequest& request, pb::AdoptIdentityResponse& response) {
  HookPrograms hooks({.own = parts_.root + parts_.hooks, .qemu = {}}, {{"STILL_RESTORE_ID", request.restore_id()},
                                                                       {"STILL_MACHINE_ID", response.machine_id()},
                                                                       {"STILL_HOSTNAME", response.hostname()}});
  std::vector<std::string> paths = hooks.List();
  if (paths.empty()) return StepResult::Skipped("this guest has none");
  absl::Duration timeout =
      absl::Milliseconds(request.hook_timeout_ms() == 0 ? kDefaultHookTimeoutMs : request.hook_timeout_ms());
  std::vector<std::string> failed;
  for (const std::string& path : paths) {
    pb::HookResult result = hooks.Run(path, "restore", timeout, [] { return false; });
    if (result.exit_code() != 0) failed.push_back(path);
    *response.add_hooks() = std::move(result);
  }
  if (failed.empty()) return StepResult::Done(absl::StrCat(paths.size(), " run"));
  return {pb::IdentityStep::FAILED, absl::StrCat("failed: ", absl::StrJoin(failed, ", "))};
}

absl::StatusOr<pb::AdoptIdentityResponse> IdentityAdopter::Adopt(const pb::AdoptIdentityRequest& request) {
  const absl::Duration received = parts_.clock.Monotonic();
  STILL_RETURN_IF_ERROR(Validate(request));
  absl::MutexLock lock(&mutex_);
  if (request.restore_id() == adopted_id_) return adopted_;
  pb::AdoptIdentityResponse response;
  absl::Status reseeded;
  Step(response, "entropy", [&] { return StepResult::Of(reseeded = MixEntropy(request)); });
  STILL_RETURN_IF_ERROR(reseeded);
  Step(response, "clock", [&] { return SetClock(request, received); });
  absl::StatusOr<pb::ThawResponse> thawed;
  pb::ThawRequest thaw;
  thaw.set_requester("restore");
  Step(response, "thaw", [&] { return StepResult::Of((thawed = parts_.controller.Thaw(thaw)).status()); });
  if (!thawed.ok()) return thawed.status();
  *response.mutable_thaw() = *std::move(thawed);
  if (!request.keep_identity()) {
    Step(response, "machine-id", [&] { return files_.SetMachineId(NewMachineId()); });
    Step(response, "hostname", [&] { return SetHostName(request.hostname()); });
    Step(response, "ssh-host-keys", [&] { return files_.RenewSshHostKeys(); });
    Step(response, "network", [&] { return SetMacs(request); });
    Step(response, "random-seed", [&] { return files_.RenewRandomSeeds(); });
  }
  response.set_machine_id(files_.MachineId());
  response.set_hostname(absl::CHexEscape(parts_.kernel.HostName().value_or("")));
  if (!request.keep_identity()) Step(response, "hooks", [&] { return RunHooks(request, response); });
  adopted_id_ = request.restore_id();
  adopted_ = response;
  return response;
}

}  // namespace still::agent
