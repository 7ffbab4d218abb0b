// Figures: everything that metrics and the status page show, read at one time.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "schedule/supervisor.h"
#include "store/book/drill_record.h"
#include "store/repository.h"

namespace still::daemon {

struct Figures {
  absl::Time now;
  std::string repository;  // Its path.
  std::vector<schedule::SessionState> sessions;
  std::vector<schedule::Schedule> schedules;
  std::vector<manifestpb::Snapshot> snapshots;  // Oldest first.
  std::vector<store::RunRow> runs;              // Newest first; the newest two thousand.
  std::vector<store::DrillRecord> drills;       // Newest first.
  struct Alert {
    std::string kind;  // "failed", "stale".
    std::string schedule;
    std::string session;
    absl::Time told;
  };
  std::vector<Alert> alerts;
  store::RepositoryStats stats;

  // Of all images of all snapshots, as their guests see them.
  uint64_t logical_bytes() const;
};

absl::StatusOr<Figures> GatherFigures(schedule::Supervisor& supervisor);

}  // namespace still::daemon
