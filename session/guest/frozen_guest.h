// FrozenGuest: the guest's file systems are frozen, or may be. Whoever holds it ends it with Thaw(); the destructor
// thaws as a logged safety net, and behind both stands the guest's own timer, which thaws when the lease runs out.
//
// Not thread-safe. Move-only.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/guest.pb.h"
#include "session/guest/guest_link.h"

namespace still::session {

struct FreezeOptions {
  absl::Duration lease = absl::Seconds(10);
  absl::Duration hook_timeout = absl::Seconds(10);
  guestpb::HookPolicy hook_policy = guestpb::HOOK_FAIL;
  bool skip_presync = false;
  std::function<bool()> cancelled = [] { return false; };  // Asked while the guest freezes.
};

class FrozenGuest {
 public:
  // Asks the agent to freeze. On an error nothing stays frozen: what could not be learned is thawed by token, and where
  // even that cannot be delivered the lease ends it. `link` must outlive the guard. Takes no longer than the agent's
  // limits for write-back, for hooks, and the lease, together.
  static absl::StatusOr<FrozenGuest> Freeze(GuestLink& link, const FreezeOptions& options);

  FrozenGuest(FrozenGuest&& other) noexcept;
  FrozenGuest& operator=(FrozenGuest&&) = delete;
  FrozenGuest(const FrozenGuest&) = delete;
  ~FrozenGuest();

  const guestpb::QuiesceResponse& report() const { return report_; }

  // The guest was reset since: nothing is frozen any more, and nobody is left to thaw.
  bool GuestRestarted() const { return link_ != nullptr && link_->restarts() != restarts_; }
  // Renews the lease, in one round trip. OK: frozen without a gap since Freeze, and for `margin` longer; the value is the
  // guest's CLOCK_BOOTTIME then, or zero from an agent that does not tell. FAILED_PRECONDITION otherwise.
  absl::StatusOr<absl::Duration> Recheck(absl::Duration margin);
  // Thaws, in one round trip. The answer says whether it was this call that did it: only cause REQUESTED, by token, with
  // as many file systems as were frozen proves that the freeze held from the beginning to the end. Tries again over a
  // new connection until `timeout`. ABORTED with GuestRestarted(): the guest was reset.
  // UNAVAILABLE: nobody answered, or the session has ended.
  absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration timeout);

 private:
  FrozenGuest(GuestLink& link, std::shared_ptr<GuestClient> client, std::string token, absl::Duration lease)
      : link_(&link), client_(std::move(client)), restarts_(link.restarts()), token_(std::move(token)), lease_(lease) {}

  GuestLink* link_;  // Null: moved from or thawed.
  // The connection that froze, used as long as it works: asking the link for one costs a round trip.
  std::shared_ptr<GuestClient> client_;
  uint64_t restarts_;  // Of the link, when the freeze was asked for.
  std::string token_;
  absl::Duration lease_;
  guestpb::QuiesceResponse report_;
};

}  // namespace still::session
