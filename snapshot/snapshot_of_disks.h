// A snapshot of a machine that is off, from the files of its disks. Nobody starts it meanwhile: its session's lock is held.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "store/repository.h"

namespace still::snapshot {

struct SnapshotOfDisksOptions {
  std::map<std::string, std::string> labels;
  std::function<void(uint64_t)> pace = nullptr;  // As TakeOptions has it.
  ProgressSink progress = [](const Progress&) {};
};

// Carried by such a snapshot, with how the machine had ended.
inline constexpr absl::string_view kOffLabel = "off";

// Whether the session has ended by a shutdown of its guest, so that its file systems are whole as they lie there.
bool WasShutDown(const sessionpb::SessionEnd& end);

// Blocks until the snapshot is durable and listed. It keeps the level `filesystem` when the guest was shut down, else
// `crash`. FAILED_PRECONDITION: it runs, or somebody works with it; its disks are not complete without a repository.
absl::StatusOr<manifestpb::Snapshot> TakeSnapshotOfDisks(const session::SessionRegistry& sessions,
                                                         const std::string& session, store::Repository& repository,
                                                         const SnapshotOfDisksOptions& options);

}  // namespace still::snapshot
