#include "session/restore_launch.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "session/guest/adopt_identity.h"

namespace still::session {
namespace {

constexpr absl::Duration kThawTimeout = absl::Seconds(30);
// For an identity, where the configuration sets no limit (proto/session.proto, ready_deadline_s).
constexpr absl::Duration kAdoptTimeout = absl::Minutes(5);
// A guest under load is silent for seconds; one that is silent for this long hangs.
constexpr absl::Duration kSilenceLimit = absl::Seconds(30);

absl::Duration AgentTimeout(const Session& session) { return absl::Seconds(session.config().agent_deadline_s()); }

// For a guest that stays what it was: nothing but its thaw is asked for.
absl::Status ThawAsSaved(Session& session, sessionpb::LaunchReport& report) {
  GuestThaw& thaw = session.guest_thaw();
  const absl::Duration agent_timeout = AgentTimeout(session);
  absl::Status agent =
      session.WaitForAgent(thaw.has_qga() ? std::min(agent_timeout, GuestThaw::kAgentBeforeQga) : agent_timeout);
  if (agent.ok()) agent = thaw.ThroughAgent(kThawTimeout, "restore").status();
  if (agent.ok() || !thaw.has_qga() || absl::IsAborted(agent)) return agent;
  STILL_ASSIGN_OR_RETURN(guestpb::ThawResponse thawed, thaw.ThroughQga(agent, kThawTimeout));
  report.add_warnings(
      absl::StrCat("still-agent did not answer; the QEMU guest agent thawed ", thawed.thawed(), " file systems"));
  return absl::OkStatus();
}

absl::Status BecomeItself(Session& session, absl::Duration timeout, sessionpb::LaunchReport& report) {
  absl::StatusOr<guestpb::AdoptIdentityResponse> answer =
      AdoptIdentity(*session.link(), session.config().identity(), {.timeout = timeout, .silence = kSilenceLimit});
  if (!answer.ok()) {
    return Annotate(session.EndedError().value_or(answer.status()), "give the guest its own identity");
  }
  guestpb::AdoptIdentityResponse adopted = *std::move(answer);
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

absl::Status Run(Session& session, const std::function<void(const std::string& step)>& on_step,
                 sessionpb::LaunchReport& report) {
  auto passed_us = [&session] { return static_cast<uint64_t>(absl::ToInt64Microseconds(session.Age())); };
  STILL_RETURN_IF_ERROR(session.executor().Run([&session] { return session.vm().Resume(); }));
  session.keeper().Watch();
  report.set_running_us(passed_us());
  const sessionpb::SessionConfig& config = session.config();
  if (!config.has_identity() && !config.restore().thaw()) return absl::OkStatus();
  const absl::Duration ready_by =
      session.Age() + (config.ready_deadline_s() > 0 ? absl::Seconds(config.ready_deadline_s())
                                                     : AgentTimeout(session) + kAdoptTimeout);
  on_step("wait for the guest's agent");
  if (!config.has_identity()) return ThawAsSaved(session, report);
  if (absl::Status agent = session.WaitForAgent(AgentTimeout(session)); !agent.ok()) {
    if (!session.guest_thaw().has_qga() || absl::IsAborted(agent)) return agent;
    return Annotate(agent, "with --without-agent the QEMU guest agent thaws it, and it stays what its source was");
  }
  report.set_agent_us(passed_us());
  on_step("wait until the guest has its own identity");
  STILL_RETURN_IF_ERROR(BecomeItself(session, ready_by - session.Age(), report));
  report.set_adopted_us(passed_us());
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<sessionpb::LaunchReport> LaunchRestored(Session& session,
                                                       const std::function<void(const std::string& step)>& on_step) {
  sessionpb::LaunchReport report;
  absl::Status status = Run(session, on_step, report);
  if (status.ok()) return report;
  session.Fail(status);
  return Annotate(status, "go on as a restored session");
}

}  // namespace still::session
