// What the book holds, as values. docs/format/book.md says what each is for. Bytes of names and ids are raw.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/time/time.h"

namespace still::store {

struct ScheduleRow {
  std::string name;
  std::string session;
  std::string timing;     // schedule/ knows its form.
  std::string retention;  // snapshot/retention knows its form.
  bool enabled = true;
  std::optional<absl::Time> next_run;
  std::optional<absl::Time> last_run;
  std::string settings;  // The rest of it; schedule/ knows its form.
};

enum class RunOutcome : int {  // Persisted.
  kRunning = 1,
  kSucceeded = 2,
  kFailed = 3,
  kInterrupted = 4,  // Its process ended without saying how.
  kMissed = 5,       // Its time passed and it was not begun.
  kSkipped = 6,      // On purpose: a blackout, or there was nothing to take a snapshot of.
};

// One row for everything that a schedule planned, done or not.
struct RunRow {
  int64_t id = 0;
  std::string schedule;
  std::string kind;     // "capture", "verify", "drill", "prune".
  std::string session;  // Empty: of the repository.
  absl::Time planned;   // Of the first and last of the occurrences that it stands for.
  absl::Time planned_until;
  uint64_t occurrences = 1;  // 0: a run by hand, or a second try.
  std::optional<absl::Time> started;
  std::optional<absl::Time> ended;
  RunOutcome outcome = RunOutcome::kRunning;
  std::string owner;        // The process that does it; schedule/ knows its form.
  std::string snapshot;     // Id of the one that was taken or tried, or empty.
  std::string consistency;  // "crash", "filesystem", "application".
  uint64_t bytes_read = 0;
  uint64_t bytes_stored = 0;
  uint64_t freeze_us = 0;
  uint64_t pause_us = 0;
  std::string message;
};

struct RunQuery {
  std::string schedule;  // Empty: any.
  std::string session;   // Empty: any.
  std::optional<RunOutcome> outcome;
  int64_t limit = 100;
};

// How far a schedule's occurrences have been dealt with for one session.
struct RunCursor {
  std::string schedule;
  std::string session;
  absl::Time planned_until;
};

}  // namespace still::store
