// Restore: a snapshot becomes a new session of its own, or several at once.
//
// Warm: saved memory goes on where it was, on a machine of the same kind. Its image is read from the repository once and
// kept hot (hot_images.h): every further session maps it privately and costs what it changes. Cold: the disks boot, on
// any machine. Either way a session gets its own directory, disks, vsock address and identity, and is only offered once
// it is ready: thawed, with random numbers, names, keys and addresses that nobody else has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "session/control/session_registry.h"
#include "snapshot/hot_images.h"
#include "snapshot/lazy_disk.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

// How long a guest may take, from the start of its VM.
struct AgentPatience {
  absl::Duration answer = absl::Seconds(60);  // Until its agent answers.
  // Until it has an identity of its own. New SSH host keys of three kinds alone take a minute and a half on an emulated
  // processor, and the guest's hooks come after.
  absl::Duration ready = absl::Minutes(6);
};

struct RestoreOptions {
  std::string snapshot;               // Any reference.
  std::vector<std::string> sessions;  // Names of the new sessions, at least one.
  bool cold = false;
  // For a machine that is gone: the new session has its names, keys and addresses. One session only.
  bool keep_identity = false;
  // The guest is left as it was saved: nobody reseeds its random generator, sets its clock or renames it.
  bool without_agent = false;
  // To see whether the snapshot works: its network cards reach nothing, and all of it is read from the
  // repository, also what is kept hot.
  bool trial = false;
  // Cold only; 0 or empty: as saved.
  uint32_t vcpus = 0;
  uint64_t memory_bytes = 0;
  std::string accelerator;
  sessionpb::SessionConfig::VsockBackend vsock_backend = sessionpb::SessionConfig::AUTOMATIC;
  AgentPatience patience;
  HotImageOptions hot = HotImageOptions::FromEnvironment();
  LazyDiskOptions lazy;  // With a server: disks are read from the repository when they are needed.
  ProgressSink progress = [](const Progress&) {};
};

struct RestoredSession {
  std::string name;
  std::string directory;
  absl::Duration started;  // From the start of still-session to ready.
  sessionpb::LaunchReport report;
};

struct Restored {
  manifestpb::Snapshot snapshot;
  bool warm = false;
  bool hot = false;             // The memory image was there already.
  absl::Duration materialised;  // Memory and disks read from the repository.
  std::vector<RestoredSession> sessions;
};

// Blocks until all sessions are ready. On an error nothing of any of them is left. ALREADY_EXISTS (a session's name),
// NOT_FOUND (the snapshot), FAILED_PRECONDITION (it cannot go on here; the message names what differs and offers
// --cold), RESOURCE_EXHAUSTED (memory), DATA_LOSS.
absl::StatusOr<Restored> RestoreSnapshot(store::Repository& repository, const session::SessionRegistry& sessions,
                                         const RestoreOptions& options);

}  // namespace still::snapshot
