// DrillRecord: a restore drill as a value. What was restored to be tried, and whether it worked; snapshot/drill.h runs
// them. The book keeps them (docs/format/book.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace still::store {

enum class DrillState : int { kRunning = 1, kPassed = 2, kFailed = 3, kAbandoned = 4 };  // Persisted.

struct DrillRecord {
  int64_t id = 0;
  std::string snapshot_id;
  std::string snapshot_name;  // May be empty.
  std::string session;        // The one the snapshot was taken of.
  std::string place;          // The throw-away session it was restored to: a name that is never used again.
  DrillState state = DrillState::kRunning;
  absl::Time started;
  std::optional<absl::Time> ended;
  absl::Duration restored;       // From the start to a session whose agent answers; zero when it did not get so far.
  std::string check;             // The command that was run in it; empty: that the agent answered was all.
  std::optional<int> exit_code;  // Of the check, when it came to an end.
  std::string message;           // Why it failed, or what the check printed.
};

}  // namespace still::store
