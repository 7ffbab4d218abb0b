// Rollback: a running session goes back to a snapshot, in its place: same name, same disk files.
//
//   check -> stage (memory and disks of the snapshot, beside what they replace) -> safety snapshot -> stop -> swap -> start
//
// Until the stop the session is not touched, and everything that takes long is done by then. After it, a failure puts
// the old files back and starts the session from the safety snapshot. What the guest did between that snapshot and the
// stop is lost in either case.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/manifest.pb.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "snapshot/restore.h"
#include "store/repository.h"

namespace still::snapshot {

struct RollbackOptions {
  std::string session;         // Running.
  std::string snapshot;        // Any reference.
  bool other_machine = false;  // It may be a snapshot of another machine than this session is.
  bool cold = false;           // Boot its disks instead of going on with its memory.
  std::string safety_name;     // Of the safety snapshot; empty: SESSION-before-rollback-TIME.
  bool without_agent = false;
  AgentPatience patience;
  HotImageOptions hot = HotImageOptions::FromEnvironment();
  ProgressSink progress = [](const Progress&) {};
};

struct RolledBack {
  manifestpb::Snapshot snapshot;
  manifestpb::Snapshot safety;
  bool warm = false;
  absl::Duration down;  // From the stop to ready.
  RestoredSession session;
};

// Blocks until the session is ready again. A snapshot of this machine (snapshot/machine.h) keeps the guest's identity;
// one of another machine, which must be asked for, gives it a new one, with this session's name. Errors as RestoreSnapshot and TakeSnapshot have
// them; the message says in what state the session is. FAILED_PRECONDITION also: a disk that is no regular file, a snapshot
// of another machine.
absl::StatusOr<RolledBack> Rollback(store::Repository& repository, const session::SessionRegistry& sessions,
                                    const RollbackOptions& options);

}  // namespace still::snapshot
