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
// What comes before the freeze, and the way there and back.
constexpr absl::Duration kPresyncLimit = absl::Seconds(30);
constexpr absl::Duration kHooksLimit = absl::Seconds(60);
constexpr absl::Duration kQuiesceMargin = absl::Seconds(5);
constexpr absl::Duration kLookAgain = absl::Seconds(1);  // Whether the guest was reset while we wait for its agent.
constexpr absl::Duration kTryAgain = absl::Milliseconds(20);  // A connection that is refused is so at once.
constexpr absl::Duration kRenewTimeout = absl::Seconds(2);
// A thaw over the connection that froze: one that was lost in silence must not cost the time for another.
constexpr absl::Duration kFirstThawTimeout = absl::Seconds(10);
constexpr absl::Duration kNextThawTimeout = absl::Seconds(4);
// The guard's own thaw: nobody waits for it, and the lease ends what it cannot.
constexpr absl::Duration kGuardThawTimeout = absl::Seconds(15);

absl::Duration QuiesceTimeout(const GuestClient& client, const FreezeOptions& options) {
  // An older agent's lease includes all of it.
  const auto& features = client.init().features();
  if (std::find(features.begin(), features.end(), "disks") == features.end()) return options.lease;
  return kPresyncLimit + kHooksLimit + options.lease + kQuiesceMargin;
}

}  // namespace

absl::StatusOr<FrozenGuest> FrozenGuest::Freeze(GuestLink& link, const FreezeOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, link.Client(kConnectTimeout));
  guestpb::QuiesceRequest request;
  request.set_token(RandomUuid());
  request.set_lease_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options.lease)));
  request.set_hook_policy(options.hook_policy);
  request.set_hook_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(options.hook_timeout)));
  request.set_skip_presync(options.skip_presync);
  request.set_presync_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(kPresyncLimit)));
  request.set_hooks_timeout_ms(static_cast<uint32_t>(absl::ToInt64Milliseconds(kHooksLimit)));
  // The guard exists before the freeze is asked for: a call that fails may still have frozen.
  FrozenGuest frozen(link, client, request.token(), options.lease);
  absl::StatusOr<guestpb::QuiesceResponse> report =
      client->Quiesce(request, QuiesceTimeout(*client, options), options.cancelled);
  if (!report.ok()) return report.status();  // `frozen` thaws.
  frozen.report_ = *std::move(report);
  return frozen;
}

FrozenGuest::FrozenGuest(FrozenGuest&& other) noexcept
    : link_(std::exchange(other.link_, nullptr)),
      client_(std::move(other.client_)),
      restarts_(other.restarts_),
      token_(std::move(other.token_)),
      lease_(other.lease_),
      report_(std::move(other.report_)) {}

FrozenGuest::~FrozenGuest() {
  if (link_ == nullptr || GuestRestarted() || link_->ended()) return;
  absl::StatusOr<guestpb::ThawResponse> thaw = Thaw(kGuardThawTimeout);
  if (thaw.ok()) {
    LogWarning("a frozen guest was thawed by its guard", {{"file_systems", thaw->thawed()}});
  } else {
    LogError("a frozen guest could not be thawed by its guard; its lease ends the freeze",
             {{"error", thaw.status().ToString()}, {"lease", absl::FormatDuration(lease_)}});
  }
}

absl::StatusOr<absl::Duration> FrozenGuest::Recheck(absl::Duration margin) {
  absl::StatusOr<guestpb::RenewQuiesceResponse> renewed = client_->RenewQuiesce(token_, kRenewTimeout);
  if (absl::IsUnavailable(renewed.status())) {
    STILL_ASSIGN_OR_RETURN(client_, link_->Client(kRenewTimeout));
    renewed = client_->RenewQuiesce(token_, kRenewTimeout);
  }
  STILL_RETURN_IF_ERROR(renewed.status());
  if (absl::Milliseconds(renewed->remaining_ms()) < margin) {
    return absl::FailedPreconditionError(
        absl::StrCat("the freeze ends in ", renewed->remaining_ms(), " ms, before the point is pinned"));
  }
  return absl::Nanoseconds(static_cast<int64_t>(renewed->boottime_ns()));
}

absl::StatusOr<guestpb::ThawResponse> FrozenGuest::Thaw(absl::Duration timeout) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  guestpb::ThawRequest request;
  request.set_token(token_);
  request.set_requester("capture");
  absl::StatusOr<guestpb::ThawResponse> response = client_->Thaw(request, std::min(timeout, kFirstThawTimeout));
  while (absl::IsUnavailable(response.status()) || absl::IsDeadlineExceeded(response.status())) {
    if (GuestRestarted()) return absl::AbortedError("the guest was reset, which ended its freeze");
    if (link_->ended()) return absl::UnavailableError("the session has ended");
    Clock::Real().Sleep(kTryAgain);
    absl::Duration left = deadline - Clock::Real().Monotonic();
    if (left <= absl::ZeroDuration()) break;
    absl::StatusOr<std::shared_ptr<GuestClient>> other = link_->Client(std::min(left, kLookAgain));
    left = std::max(absl::ZeroDuration(), deadline - Clock::Real().Monotonic());
    if (other.ok()) {
      client_ = *std::move(other);
      response = client_->Thaw(request, left);
      continue;
    }
    // An agent that is only slow answers no Ping in time, and thaws all the same: right after the point each of its guest's
    // writes waits for the page to be saved.
    response = client_->Thaw(request, std::min(left, kNextThawTimeout));
    if (absl::IsUnavailable(response.status())) response = other.status();
  }
  if (response.ok()) link_ = nullptr;
  return response;
}

}  // namespace still::session
