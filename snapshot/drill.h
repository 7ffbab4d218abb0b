// Restore drill: a backup that was never restored is not a backup. Restores a snapshot to a throw-away session without a
// network, waits for the agent, runs the user's check in it, records the result, and removes the session.
#pragma once

#include <functional>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "snapshot/restore.h"
#include "store/book/book.h"
#include "store/repository.h"

namespace still::snapshot {

struct DrillOptions {
  std::string snapshot = "latest";  // A reference, or a session's name: its newest.
  std::string check;                // For /bin/sh in the guest; empty: it is enough that the agent answers.
  absl::Duration check_timeout = absl::Minutes(5);
  AgentPatience patience = {.answer = absl::Minutes(2)};
  bool cold = false;  // Boot the disks, although there is memory.
  ProgressSink progress = [](const Progress&) {};
};

// Blocks until the drill is over, recorded in the book, and nothing of the session is left; also when it fails. The record says
// whether the snapshot works: kPassed or kFailed, with the reason in `message`. An error is about the drill itself:
// NOT_FOUND (the snapshot), or it could not be begun or recorded.
absl::StatusOr<store::DrillRecord> RunDrill(store::Repository& repository, store::Book& book,
                                            const session::SessionRegistry& sessions, const DrillOptions& options);

// Closes drills of this state directory that were killed (kAbandoned) and removes what they left. Part of RunDrill(),
// and of the start of a service.
absl::Status SweepDrills(store::Book& book, const session::SessionRegistry& sessions);

}  // namespace still::snapshot
