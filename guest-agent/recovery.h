// Thawing without a freeze in force: what a dead agent left frozen, and what somebody else froze.
#pragma once

#include "base/status.h"
#include "guest-agent/freeze_marker.h"
#include "guest-agent/freezer.h"
#include "guest-agent/hooks.h"
#include "proto/guest.pb.h"

namespace still::agent {

// When the marker exists: thaws what it names (everything, when it is damaged), runs all thaw hooks and removes it.
// OK with NOT_FROZEN when there is no marker. UNAVAILABLE, and the marker stays, when a file system failed to thaw.
absl::StatusOr<pb::ThawResponse> ThawAfterAgentDeath(Freezer& freezer, const FreezeMarker& marker, Hooks& hooks,
                                                     absl::Duration hook_timeout);

// FITHAW of everything freezable here; adds to `response`. An operator's last way out.
absl::Status ThawForeignFreezes(Freezer& freezer, pb::ThawResponse& response);

}  // namespace still::agent
