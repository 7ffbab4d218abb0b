// TakeSnapshot: one consistent snapshot of one running session into a repository.
//
//   prepare -> window (in still-session: quiesce, recheck, pause, pin, save, resume, thaw) -> drain -> commit ->
//   release
//
// If anything fails, or this process dies, the guest runs on and is thawed, nothing is listed, and what was stored is
// found again by the next capture.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "proto/session.grpc.pb.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

struct TakeOptions {
  std::string name;  // Empty: none.
  std::map<std::string, std::string> labels;
  sessionpb::QuiescePolicy quiesce = sessionpb::QUIESCE_TRY;
  guestpb::HookPolicy hook_policy = guestpb::HOOK_FAIL;
  bool memory = true;
  // With memory: where it can only be saved while the machine stands still, for longer than max_pause.
  sessionpb::MemoryPolicy memory_policy = sessionpb::MEMORY_TRY;
  absl::Duration max_pause = absl::Seconds(2);  // How long the machine may stand still.
  absl::Duration freeze_lease = absl::Seconds(10);
  absl::Duration hook_timeout = absl::Seconds(10);
  bool skip_presync = false;
  // Keep track of what is written to memory, so that the next snapshot with this option reads no more than that.
  bool track_memory = false;
  uint64_t pin_space_limit = 0;  // BeginCaptureRequest.
  // How fast the disks are read (NbdSource::pace); memory is not asked, because the guest waits for it.
  std::function<void(uint64_t)> pace = nullptr;
  ProgressSink progress = [](const Progress&) {};
};

// Blocks until the snapshot is durable and listed, or has failed. Gives its manifest. Errors: ALREADY_EXISTS (the
// name), FAILED_PRECONDITION (the freeze, with quiesce=require; another capture under way), UNAVAILABLE (the session is
// gone), and those of the repository.
absl::StatusOr<manifestpb::Snapshot> TakeSnapshot(const session::SessionRegistry& sessions, const std::string& session,
                                                  store::Repository& repository, const TakeOptions& options);

}  // namespace still::snapshot
