// Figures: everything that metrics and the status page show, read at one time.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/host_identity.h"
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
  HostIdentity here;
  std::vector<manifestpb::Snapshot> snapshots;  // Of all hosts, in the order of commits.
  std::vector<store::RunRow> runs;         // Newest first; the newest two thousand, and the last of what runs rarely.
  std::vector<store::DrillRecord> drills;  // Newest first.
  struct Alert {
    std::string kind;  // "failed", "stale", ...
    std::string schedule;
    std::string session;
    std::string message;
    absl::Time since;
    bool told = false;  // The message arrived.
  };
  std::vector<Alert> alerts;
  store::RepositoryStats stats;
  schedulepb::CheckReport report;  // When the scheduler last took a full turn, and what protects which machine.

  // Of all images of all snapshots, as their guests see them.
  uint64_t logical_bytes() const;
  // Whether it is of a machine of this host: others have machines of the same names.
  bool IsOurs(const manifestpb::Snapshot& snapshot) const;
};

absl::StatusOr<Figures> GatherFigures(schedule::Supervisor& supervisor);

}  // namespace still::daemon
