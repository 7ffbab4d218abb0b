#include "guest-agent/recovery.h"

#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "guest-agent/frozen_file_system.h"

namespace still::agent {
namespace {

absl::StatusOr<std::vector<FrozenFileSystem>> OpenMarked(Freezer& freezer, const FreezeMarker& marker) {
  absl::StatusOr<std::vector<PlannedFileSystem::Mount>> mounts = marker.Read();
  if (!mounts.ok()) {
    LogWarning("freeze marker unreadable, thawing everything", {{"error", mounts.status().ToString()}});
    STILL_ASSIGN_OR_RETURN(MountSurvey survey, freezer.Survey());
    STILL_ASSIGN_OR_RETURN(FreezePlan plan, MakeFreezePlan(survey, {}));
    pb::QuiesceResponse unused;
    return OpenPlanned(freezer, plan, unused);
  }
  std::vector<FrozenFileSystem> opened;
  for (const PlannedFileSystem::Mount& mount : *mounts) {
    auto handle = freezer.Open(mount.mount_id, mount.mount_point);
    if (!handle.ok()) {
      // Unmounted since, so nobody waits for it; or covered, which the operator must see.
      LogError("cannot reach a frozen mount", {{"error", handle.status().ToString()}});
      continue;
    }
    opened.push_back({*std::move(handle), mount, {}});
  }
  return opened;
}

// Newest freeze first: a file system that others lie on must let them write.
absl::Status ThawAll(std::vector<FrozenFileSystem>& opened, pb::ThawResponse& response) {
  absl::Status status;
  for (auto fs = opened.rbegin(); fs != opened.rend(); ++fs) {
    ThawOutcome outcome = ThawCompletely(*fs->handle);
    if (outcome.thaws > 0) {
      response.set_thawed(response.thawed() + 1);
      LogWarning("thawed", {{"mount", fs->reached.mount_point}});
    }
    if (outcome.error != 0) {
      status =
          absl::UnavailableError(absl::StrCat("thaw ", fs->reached.mount_point, ": ", std::strerror(outcome.error)));
    }
  }
  return status;
}

}  // namespace

absl::StatusOr<pb::ThawResponse> ThawAfterAgentDeath(Freezer& freezer, const FreezeMarker& marker, Hooks& hooks,
                                                     absl::Duration hook_timeout) {
  pb::ThawResponse response;
  response.set_cause(pb::NOT_FROZEN);
  if (!marker.Exists()) return response;
  STILL_ASSIGN_OR_RETURN(std::vector<FrozenFileSystem> opened, OpenMarked(freezer, marker));
  STILL_RETURN_IF_ERROR(ThawAll(opened, response));
  response.set_cause(pb::AGENT_RESTARTED);
  response.set_thawed_at_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(Clock::Real().Monotonic())));
  STILL_RETURN_IF_ERROR(marker.Remove());
  std::vector<std::string> paths = hooks.List();
  for (auto path = paths.rbegin(); path != paths.rend(); ++path) {
    *response.add_hooks() = hooks.Run(*path, "thaw", hook_timeout, [] { return false; });
  }
  return response;
}

absl::Status ThawForeignFreezes(Freezer& freezer, pb::ThawResponse& response) {
  STILL_ASSIGN_OR_RETURN(MountSurvey survey, freezer.Survey());
  STILL_ASSIGN_OR_RETURN(FreezePlan plan, MakeFreezePlan(survey, {}));
  pb::QuiesceResponse unused;
  std::vector<FrozenFileSystem> opened = OpenPlanned(freezer, plan, unused);
  uint32_t before = response.thawed();
  STILL_RETURN_IF_ERROR(ThawAll(opened, response));
  if (response.thawed() != before) response.set_cause(pb::REQUESTED);
  return absl::OkStatus();
}

}  // namespace still::agent
