// RestorePlan: what a restore will do, decided and checked before it does anything; and the parts it is made of, for
// Restore (restore.h) and Rollback (rollback.h).
#pragma once

#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.pb.h"
#include "snapshot/restore.h"

namespace still::snapshot {

struct RestorePlan {
  manifestpb::Snapshot snapshot;
  bool warm = false;
  // The agent will be waited for, and asked to make the guest a machine of its own.
  bool agent = false;
  std::string machine_type;        // Cold: the machine to boot; empty: the usual one.
  std::vector<std::string> notes;  // What an operator should know of the choice; usually nothing.
};

// Errors as RestoreSnapshot has them, before anything was started or written. `state_directory`: where QEMU's facts are
// kept.
absl::StatusOr<RestorePlan> PlanRestore(store::Repository& repository, const RestoreOptions& options,
                                        const std::string& state_directory);

// The configuration of one new session, without its files.
sessionpb::SessionConfig ConfigFor(const RestorePlan& plan, const RestoreOptions& options, const std::string& session);

// Where the sessions' kernels are kept (boot_files.h).
std::string BootFileDirectory(const session::SessionRegistry& sessions);

struct MemoryImage {
  OwnedFd fd;
  bool shared = false;  // With other sessions, now or later: to be mapped privately.
  bool hot = false;     // It was there already.
};
// The saved memory: the hot image, or, where there is no room for one, a copy for these sessions alone.
absl::StatusOr<MemoryImage> LoadMemory(store::Repository& repository, const RestorePlan& plan,
                                       const RestoreOptions& options);

// Starts the session whose files are complete. `launch.timeout` is chosen here.
absl::StatusOr<RestoredSession> LaunchRestored(const session::SessionRegistry& sessions,
                                               const sessionpb::SessionConfig& config, session::LaunchOptions launch,
                                               const RestoreOptions& options);

}  // namespace still::snapshot
