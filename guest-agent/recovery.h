// Thawing without a freeze in force: what a dead agent left frozen, and what somebody else froze.
#pragma once

#include <optional>
#include <string>

#include "base/clock.h"
#include "base/status.h"
#include "guest-agent/freeze_marker.h"
#include "guest-agent/freezer.h"
#include "guest-agent/hooks.h"
#include "proto/guest.pb.h"

namespace still::agent {

struct RecoveredFreeze {
  std::string token;  // Empty when the marker did not tell.
  pb::ThawResponse thaw;
};

// When the marker exists: thaws what it names (everything, when it is damaged), runs all thaw hooks and removes it.
// Nothing when there is no marker. UNAVAILABLE, and the marker stays, when a file system failed to thaw.
absl::StatusOr<std::optional<RecoveredFreeze>> ThawAfterAgentDeath(Freezer& freezer, const FreezeMarker& marker,
                                                                   Hooks& hooks, Clock& clock,
                                                                   absl::Duration hook_timeout);

// FITHAW of everything freezable here; adds to `response`. An operator's last way out.
absl::Status ThawForeignFreezes(Freezer& freezer, pb::ThawResponse& response);

}  // namespace still::agent
