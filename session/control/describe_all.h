// Asks many sessions at once how they are, so that one which hangs costs the others nothing.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/control/session_registry.h"

namespace still::session {

// One answer for each name, in their order. Takes `timeout` at most, however many hang: their answers are
// DEADLINE_EXCEEDED.
std::vector<absl::StatusOr<sessionpb::DescribeResponse>> DescribeAll(const SessionRegistry& sessions,
                                                                     const std::vector<std::string>& names,
                                                                     absl::Duration timeout);

}  // namespace still::session
