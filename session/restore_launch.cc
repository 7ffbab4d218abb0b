#include "session/restore_launch.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "session/guest/adopt_identity.h"

namespace still::session {
namespace {

constexpr absl::Duration kThawTimeout = absl::Seconds(30);
// New SSH host keys of three kinds take a minute and a half on an emulated processor, and the guest's hooks come after.
constexpr absl::Duration kAdoptTimeout = absl::Seconds(300);

// For a guest that stays what it was: nothing but its thaw is asked for.
absl::Status ThawAsSaved(Session& session, absl::Duration agent_timeout, sessionpb::LaunchReport& report) {
  GuestThaw& thaw = session.guest_thaw();
  absl::Status agent =
      session.WaitForAgent(thaw.has_qga() ? std::min(agent_timeout, GuestThaw::kAgentBeforeQga) : agent_timeout);
  if (agent.ok()) agent = thaw.ThroughAgent(kThawTimeout).status();
  if (agent.ok() || !thaw.has_qga() || absl::IsAborted(agent)) return agent;
  STILL_ASSIGN_OR_RETURN(guestpb::ThawResponse thawed, thaw.ThroughQga(agent, kThawTimeout));
  report.add_warnings(
      absl::StrCat("still-agent did not answer; the QEMU guest agent thawed ", thawed.thawed(), " file systems"));
  return absl::OkStatus();
}

absl::Status BecomeItself(Session& session, sessionpb::LaunchReport& report) {
  STILL_ASSIGN_OR_RETURN(guestpb::AdoptIdentityResponse adopted,
                         AdoptIdentity(*session.link(), session.config().identity(), kAdoptTimeout));
  for (std::string& step : FailedSteps(adopted)) report.add_warnings(std::move(step));
  if (MayUseNetwork(adopted)) {
    for (const manifestpb::Nic& nic : session.config().machine().nics()) {
      STILL_RETURN_IF_ERROR(session.executor().Run([&] { return session.vm().SetLink(nic.name(), true); }));
    }
  } else {
    report.add_warnings("the network stays down: on it this machine would have its source's addresses");
  }
  session.SetIdentity(std::move(adopted));
  return absl::OkStatus();
}

absl::Status Run(Session& session, absl::Duration agent_timeout, sessionpb::LaunchReport& report) {
  auto passed_us = [&session] { return static_cast<uint64_t>(absl::ToInt64Microseconds(session.Age())); };
  STILL_RETURN_IF_ERROR(session.executor().Run([&session] { return session.vm().Resume(); }));
  session.keeper().Watch();
  report.set_running_us(passed_us());
  const sessionpb::SessionConfig& config = session.config();
  if (!config.has_identity() && !config.restore().thaw()) return absl::OkStatus();
  if (!config.has_identity()) return ThawAsSaved(session, agent_timeout, report);
  if (absl::Status agent = session.WaitForAgent(agent_timeout); !agent.ok()) {
    if (!session.guest_thaw().has_qga() || absl::IsAborted(agent)) return agent;
    return Annotate(agent, "with --without-agent the QEMU guest agent thaws it, and it stays what its source was");
  }
  report.set_agent_us(passed_us());
  STILL_RETURN_IF_ERROR(BecomeItself(session, report));
  report.set_adopted_us(passed_us());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<sessionpb::LaunchReport> LaunchRestored(Session& session, absl::Duration agent_timeout) {
  sessionpb::LaunchReport report;
  absl::Status status = Run(session, agent_timeout, report);
  if (status.ok()) return report;
  session.Stop();
  return Annotate(status, "go on as a restored session");
}

}  // namespace still::session
