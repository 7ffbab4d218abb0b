// GuestThaw: thaws whatever is frozen in a guest: through still-agent, and where it does not answer, through the QEMU
// guest agent, if the machine has a port to one. Thread-safe.
#pragma once

#include <memory>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "session/guest/guest_link.h"
#include "session/guest/qga_client.h"

namespace still::session {

class GuestThaw {
 public:
  // Where the QEMU guest agent can be asked next, still-agent gets no more than this: a frozen guest waits, and to be
  // thawed by the other one does no harm.
  static constexpr absl::Duration kAgentBeforeQga = absl::Seconds(5);

  // `link`: shared with the session; null without vsock. `qga`: null when the machine has no port to one.
  GuestThaw(std::shared_ptr<GuestLink> link, std::unique_ptr<QgaClient> qga)
      : link_(std::move(link)), qga_(std::move(qga)) {}

  // By the first of them that does it, for an operator.
  absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration timeout);
  absl::StatusOr<guestpb::ThawResponse> ThroughAgent(absl::Duration timeout, const std::string& requester);
  // Only with has_qga(). `agent`: why still-agent did not do it.
  absl::StatusOr<guestpb::ThawResponse> ThroughQga(const absl::Status& agent, absl::Duration timeout);
  bool has_qga() const { return qga_ != nullptr; }

 private:
  const std::shared_ptr<GuestLink> link_;
  const std::unique_ptr<QgaClient> qga_;
};

}  // namespace still::session
