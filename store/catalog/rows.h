// What the catalog holds, as values. docs/format/catalog.md says what each is for. Bytes of names and ids are raw.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace still::store {

struct CatalogPack {
  std::string name;  // 16 bytes.
  int kind = 0;      // As in the pack's footer.
  uint64_t size = 0;
  int64_t created_unix_ns = 0;
  uint32_t blocks = 0;
  uint32_t nodes = 0;
  uint64_t overhead = 0;  // Of its bytes, those that are not blocks.
  std::string hooks;      // The sample of its block ids; store/pack knows its form.
  std::optional<absl::Time> condemned;
};

struct CatalogNode {
  std::string id;        // 32 bytes.
  uint32_t ordinal = 0;  // In the pack's footer.
};

struct NodePlace {
  std::string pack;  // Its name.
  uint32_t ordinal = 0;
};

struct CatalogImage {
  std::string name;
  int role = 0;  // manifest.proto, Image.Role.
  uint64_t size = 0;
  std::string root;  // 32 bytes.
  std::string bitmap;
};

struct CatalogSnapshot {
  std::string id;    // 32 hex digits.
  std::string name;  // Unique when not empty.
  std::string session;
  std::string session_id;
  int64_t point_unix_ns = 0;
  int64_t committed_unix_ns = 0;
  int kind = 0;          // manifest.proto, Snapshot.Kind.
  std::string manifest;  // The serialized message.
  std::map<std::string, std::string> labels;
  std::vector<CatalogImage> images;  // Sorted by name.
};

struct CatalogSession {
  std::string name;
  std::string id;
  uint64_t snapshots = 0;
  int64_t first_point_unix_ns = 0;
  int64_t last_point_unix_ns = 0;
};

// The newest image of a disk: what an incremental capture is based on.
struct CatalogBase {
  std::string snapshot_id;
  CatalogImage image;
};

struct CatalogSchedule {
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
struct CatalogRun {
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

enum class JobState : int { kRunning = 1, kDone = 2, kFailed = 3, kAbandoned = 4 };  // Persisted.

struct CatalogJob {
  int64_t id = 0;
  std::string kind;     // "capture", "prune", "verify", ...
  std::string subject;  // What it is about: a session's, snapshot's or schedule's name.
  JobState state = JobState::kRunning;
  std::string owner;  // The lease of the process that runs it (locks.md).
  absl::Time started;
  std::optional<absl::Time> ended;
  uint64_t done = 0;
  uint64_t total = 0;
  std::string message;
};

}  // namespace still::store
