// Preview: the timeline that a schedule's timing and retention will leave, day by day, before anything is done. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "schedule/schedule.h"
#include "snapshot/retention.h"

namespace still::schedule {

struct PreviewedSnapshot {
  std::string id;  // Empty: one that will be taken.
  absl::Time point;
  bool keep = false;
  std::optional<absl::Time> dropped;  // When.
  std::vector<std::string> reasons;   // At the end, or when it was dropped.
};

// `existing`: the session's snapshots by this schedule. Each run is taken to be successful and instant. Oldest first.
// RESOURCE_EXHAUSTED: more than 20,000 runs in that time.
absl::StatusOr<std::vector<PreviewedSnapshot>> Preview(const Schedule& schedule, const std::string& session,
                                                       const std::vector<snapshot::RetentionCandidate>& existing,
                                                       absl::Time now, absl::Duration length);

}  // namespace still::schedule
