// Makes the guest of a restored session a machine of its own, through its agent (proto/guest.proto, AdoptIdentity).
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/guest.pb.h"
#include "proto/session.pb.h"
#include "session/guest/guest_link.h"

namespace still::session {

struct AdoptLimits {
  absl::Duration timeout;  // For all of it.
  // Without an answer to a Ping: a guest that hangs is not waited for as long as one that is slow.
  absl::Duration silence;
};

// Sends fresh entropy, the time and what `identity` says, over whatever connection the agent has, until it was answered
// or a limit is reached. The guest is thawed and its random generator reseeded when this returns OK. On an error it must
// not run on: it may share its random numbers with its source. FAILED_PRECONDITION: an agent that cannot do it.
// DEADLINE_EXCEEDED: a limit. UNAVAILABLE: the link was shut down.
absl::StatusOr<guestpb::AdoptIdentityResponse> AdoptIdentity(GuestLink& link, const sessionpb::NewIdentity& identity,
                                                             const AdoptLimits& limits);

// True when nothing on a network can take this machine for the one it was copied from: its addresses are its own, or
// it keeps them on purpose.
bool MayUseNetwork(const guestpb::AdoptIdentityResponse& response);

// The steps that failed, a printable sentence each: what the guest says is bounded and escaped.
std::vector<std::string> FailedSteps(const guestpb::AdoptIdentityResponse& response);

}  // namespace still::session
