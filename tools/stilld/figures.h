// Figures: everything that metrics and the status page show, read at one time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/host_identity.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "schedule/supervisor.h"
#include "store/book/drill_record.h"
#include "store/repository.h"

namespace still::daemon {

struct Figures {
  absl::Time now;
  std::string repository;  // Its path.
  // Why nothing is known of it now: it is not mounted, or hangs. Empty: snapshots and stats say how it is.
  std::string repository_trouble;
  std::vector<schedule::SessionState> sessions;
  std::vector<schedule::Schedule> schedules;
  HostIdentity here;
  // Of all hosts: by session, within one in the order of commits. Shared with the repository, which keeps them.
  std::shared_ptr<const std::vector<store::SnapshotSummary>> snapshots =
      std::make_shared<const std::vector<store::SnapshotSummary>>();
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
  bool IsOurs(const store::SnapshotSummary& snapshot) const;
};

// What is counted anew at most each minute, because it goes through all of the repository.
class CountedStats {
 public:
  absl::StatusOr<store::RepositoryStats> Of(store::Repository& repository) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Mutex mutex_;
  absl::Duration counted_at_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();  // By the monotonic clock.
  store::RepositoryStats stats_ ABSL_GUARDED_BY(mutex_);
};

absl::StatusOr<Figures> GatherFigures(schedule::Supervisor& supervisor, CountedStats& stats);

}  // namespace still::daemon
