// What the scheduler decides about and does nothing to by itself: the book of schedules and runs, and the host with its
// machines.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "schedule/pair_state.h"
#include "schedule/schedule.h"
#include "store/book/rows.h"

namespace still::schedule {

// Where schedules and runs are written down (stored_book.h). Every change is durable when it returns.
class RunBook {
 public:
  virtual ~RunBook() = default;
  virtual absl::StatusOr<std::vector<Schedule>> Schedules() = 0;
  // Those that the last Schedules() had to leave out, and why.
  virtual std::map<std::string, std::string> Unusable() const = 0;
  virtual absl::StatusOr<int64_t> AddRun(const store::RunRow& run) = 0;
  virtual absl::Status UpdateRun(const store::RunRow& run) = 0;
  virtual absl::StatusOr<std::optional<store::RunRow>> FindRun(int64_t id) = 0;
  virtual absl::StatusOr<std::vector<store::RunRow>> Running() = 0;
  virtual absl::StatusOr<std::vector<store::RunCursor>> Cursors() = 0;
  virtual absl::Status Remember(const std::string& key, const std::string& value) = 0;
  // All of them or none, by one write.
  virtual absl::Status RememberAll(const std::map<std::string, std::string>& values) = 0;
  virtual absl::StatusOr<std::map<std::string, std::string>> Remembered() = 0;
};

struct SessionState {
  std::string name;
  bool running = false;    // Or ought to. Else it was ended: there is nothing new to take a snapshot of.
  std::string unreadable;  // Why nothing is known of it; then it counts as running.
  std::string ended;       // How it ended, unless somebody stopped it; also of one that ought to run.
  std::string held;        // Why it stands still though it runs: its disk cannot be read or written.
  // How often its guest was reset since the session started. Nothing: not known.
  std::optional<uint32_t> resets;
};
using Newest = std::map<Level, absl::Time>;

// What runs are done to.
class Host {
 public:
  virtual ~Host() = default;
  virtual absl::StatusOr<std::vector<SessionState>> Sessions() = 0;
  // Of each of these machines, as far as it has one: the point of its newest snapshot of each level.
  virtual absl::StatusOr<std::map<std::string, Newest>> NewestGood(const std::set<std::string>& sessions) = 0;
  // Begins the run, in the background and in a way that survives our own end; it writes its own end into its row.
  virtual absl::Status Start(const Schedule& schedule, const store::RunRow& run) = 0;
  virtual bool Alive(int64_t run) = 0;
  // For one that takes too long.
  virtual void Stop(int64_t run) = 0;
};

}  // namespace still::schedule
