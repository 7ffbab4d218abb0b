#include "session/guest/guest_thaw.h"

#include "base/status.h"

namespace still::session {
namespace {

constexpr absl::Duration kAgentCallTimeout = absl::Seconds(10);

}  // namespace

absl::StatusOr<guestpb::ThawResponse> GuestThaw::Thaw(absl::Duration timeout) {
  absl::StatusOr<guestpb::ThawResponse> thawed = ThroughAgent(timeout, "still thaw");
  if (thawed.ok() || qga_ == nullptr) return thawed;
  return ThroughQga(thawed.status(), timeout);
}

absl::StatusOr<guestpb::ThawResponse> GuestThaw::ThroughAgent(absl::Duration timeout, const std::string& requester) {
  if (link_ == nullptr) return absl::FailedPreconditionError("the session has no vsock, so no agent to ask");
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client,
                         link_->Client(qga_ == nullptr ? kAgentCallTimeout : kAgentBeforeQga));
  guestpb::ThawRequest request;
  request.set_requester(requester);
  return client->Thaw(request, timeout);
}

absl::StatusOr<guestpb::ThawResponse> GuestThaw::ThroughQga(const absl::Status& agent, absl::Duration timeout) {
  absl::StatusOr<uint32_t> thawed = qga_->Thaw(timeout);
  if (!thawed.ok()) return Annotate(thawed.status(), agent.message());
  guestpb::ThawResponse response;
  response.set_thawed(*thawed);
  response.set_cause(*thawed > 0 ? guestpb::REQUESTED : guestpb::NOT_FROZEN);
  return response;
}

}  // namespace still::session
