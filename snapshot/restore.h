// Restore: a snapshot becomes a new session of its own.
//
// Warm: saved memory goes on where it was, on a machine of the same kind. Cold: the disks boot, on any. Either way the
// session gets its own directory, disks, vsock address and identity, and is only offered once it is ready: a warm one
// when its file systems are thawed.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

struct RestoreOptions {
  std::string snapshot;  // Any reference.
  std::string session;   // Name of the new session.
  bool cold = false;
  // Cold only; 0 or empty: as saved.
  uint32_t vcpus = 0;
  uint64_t memory_bytes = 0;
  std::string accelerator;
  sessionpb::SessionConfig::VsockBackend vsock_backend = sessionpb::SessionConfig::AUTOMATIC;
  absl::Duration agent_timeout = absl::Seconds(60);
  ProgressSink progress = [](const Progress&) {};
};

struct RestoredSession {
  manifestpb::Snapshot snapshot;
  std::string directory;
  absl::Duration materialised;  // Memory and disks read from the repository.
  absl::Duration started;       // From the start of still-session to ready.
};

// Blocks until the session is ready. On an error nothing of it is left. ALREADY_EXISTS (the session's name), NOT_FOUND
// (the snapshot), FAILED_PRECONDITION (it cannot go on here; the message offers --cold), DATA_LOSS.
absl::StatusOr<RestoredSession> RestoreSnapshot(store::Repository& repository, const session::SessionRegistry& sessions,
                                                const RestoreOptions& options);

}  // namespace still::snapshot
