// Worker: does one run, from its row to its end, in a process of its own (process_host.h). It uses the same library as
// the command, and the session's life line makes its death harmless at any instant: the guest runs on, thawed.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"
#include "store/repository.h"

namespace still::schedule {

struct WorkerOptions {
  std::string state;                    // The state directory.
  store::RepositoryOptions repository;  // With its credentials.
  std::string still_program;            // For restore drills.
};

// Blocks until the run is over and its row says so. An error when it failed, with what the row says, or when the row
// could not be written. FAILED_PRECONDITION: the row is not open; nothing was done.
absl::Status ExecuteRun(const WorkerOptions& options, int64_t run_id);

}  // namespace still::schedule
