#include "session/guest/frozen_guest.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"

namespace still::session {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(5);
constexpr absl::Duration kLookAgain = absl::Seconds(1);  // Whether the guest was reset while we wait for its agent.
constexpr absl::Duration kRenewTimeout = absl::Seconds(2);
// The guard's own thaw: nobody waits for it, and the lease ends what it cannot.
constexpr absl::Duration kGuardThawTimeout = absl::Seconds(15);

}  // namespace

absl::StatusOr<FrozenGuest> FrozenGuest::Freeze(GuestLink& link, const FreezeOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, link.Client(kConnectTimeout));
  guestpb::QuiesceRequest request;
  request.set_token(RandomUuid());
  request.set_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options.lease)));
  request.set_hook_policy(options.hook_policy);
  request.set_hook_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options.hook_timeout)));
  request.set_skip_presync(options.skip_presync);
  // The guard exists before the freeze is asked for: a call that fails may still have frozen.
  FrozenGuest frozen(link, request.token(), options.lease);
  absl::StatusOr<guestpb::QuiesceResponse> report = client->Quiesce(request, options.lease);
  if (!report.ok()) return report.status();  // `frozen` thaws.
  frozen.report_ = *std::move(report);
  return frozen;
}

FrozenGuest::FrozenGuest(FrozenGuest&& other) noexcept
    : link_(std::exchange(other.link_, nullptr)),
      restarts_(other.restarts_),
      token_(std::move(other.token_)),
      lease_(other.lease_),
      report_(std::move(other.report_)) {}

FrozenGuest::~FrozenGuest() {
  if (link_ == nullptr || GuestRestarted()) return;
  absl::StatusOr<guestpb::ThawResponse> thaw = Thaw(kGuardThawTimeout);
  if (thaw.ok()) {
    LogWarning("a frozen guest was thawed by its guard", {{"file_systems", thaw->thawed()}});
  } else {
    LogError("a frozen guest could not be thawed by its guard; its lease ends the freeze",
             {{"error", thaw.status().ToString()}, {"lease", absl::FormatDuration(lease_)}});
  }
}

absl::Status FrozenGuest::Recheck(absl::Duration margin) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, link_->Client(kRenewTimeout));
  STILL_ASSIGN_OR_RETURN(uint32_t left_ms, client->RenewQuiesce(token_, kRenewTimeout));
  if (absl::Milliseconds(left_ms) < margin) {
    return absl::FailedPreconditionError(
        absl::StrCat("the freeze ends in ", left_ms, " ms, before the point is pinned"));
  }
  return absl::OkStatus();
}

absl::StatusOr<guestpb::ThawResponse> FrozenGuest::Thaw(absl::Duration timeout) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  absl::Status last = absl::DeadlineExceededError("thaw: no time left");
  for (;;) {
    if (GuestRestarted()) return absl::AbortedError("the guest was reset, which ended its freeze");
    absl::Duration left = deadline - Clock::Real().Monotonic();
    if (left <= absl::ZeroDuration()) return last;
    absl::StatusOr<std::shared_ptr<GuestClient>> client = link_->Client(std::min(left, kLookAgain));
    if (!client.ok()) {
      last = client.status();
      continue;
    }
    absl::StatusOr<guestpb::ThawResponse> response = (*client)->Thaw(token_, left);
    if (response.ok()) {
      link_ = nullptr;
      return response;
    }
    last = response.status();
    if (!absl::IsUnavailable(last) && !absl::IsDeadlineExceeded(last)) return last;
  }
}

}  // namespace still::session
