#include "guest-agent/recovery.h"

#include <cstring>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "guest-agent/frozen_file_system.h"

namespace still::agent {
namespace {

absl::StatusOr<std::vector<FrozenFileSystem>> OpenEverything(Freezer& freezer) {
  STILL_ASSIGN_OR_RETURN(MountSurvey survey, freezer.Survey());
  STILL_ASSIGN_OR_RETURN(FreezePlan plan, MakeFreezePlan(survey, {}));
  pb::QuiesceResponse unused;
  return OpenPlanned(freezer, plan, unused);
}

absl::StatusOr<std::vector<FrozenFileSystem>> OpenMarked(Freezer& freezer, const MarkedFreeze& marked) {
  std::vector<FrozenFileSystem> opened;
  bool all_reached = true;
  // A mount of another namespace is reached through a process that lives in it now.
  absl::StatusOr<MountSurvey> survey = freezer.Survey();
  std::map<int, std::string> paths;
  for (const MountEntry& mount : survey.ok() ? survey->mounts : std::vector<MountEntry>()) {
    if (!mount.open_path.empty()) paths[mount.mount_id] = mount.open_path;
  }
  for (const PlannedFileSystem::Mount& mount : marked.mounts) {
    auto path = paths.find(mount.mount_id);
    auto handle = freezer.Open(mount.mount_id, path == paths.end() ? mount.mount_point : path->second);
    if (!handle.ok()) {
      LogError("cannot reach a frozen mount, thawing everything", {{"error", handle.status().ToString()}});
      all_reached = false;
      continue;
    }
    opened.push_back({*std::move(handle), {}, mount, {}});
  }
  if (all_reached) return opened;
  // Unmounted, or gone with its namespace: the file system may have another mount, and is frozen in all of them.
  STILL_ASSIGN_OR_RETURN(std::vector<FrozenFileSystem> everything, OpenEverything(freezer));
  for (FrozenFileSystem& fs : everything) opened.push_back(std::move(fs));
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

absl::StatusOr<std::optional<RecoveredFreeze>> ThawAfterAgentDeath(Freezer& freezer, const FreezeMarker& marker,
                                                                   Hooks& hooks, Clock& clock,
                                                                   absl::Duration hook_timeout) {
  if (!marker.Exists()) return std::nullopt;
  RecoveredFreeze recovered;
  std::vector<FrozenFileSystem> opened;
  if (absl::StatusOr<MarkedFreeze> marked = marker.Read(); marked.ok()) {
    recovered.token = marked->token;
    STILL_ASSIGN_OR_RETURN(opened, OpenMarked(freezer, *marked));
  } else {
    LogWarning("freeze marker unreadable, thawing everything", {{"error", marked.status().ToString()}});
    STILL_ASSIGN_OR_RETURN(opened, OpenEverything(freezer));
  }
  STILL_RETURN_IF_ERROR(ThawAll(opened, recovered.thaw));
  recovered.thaw.set_cause(pb::AGENT_RESTARTED);
  recovered.thaw.set_thawed_at_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(clock.Monotonic())));
  STILL_RETURN_IF_ERROR(marker.Remove());
  // Which hooks had run is not known; a thaw hook must bear being called without its freeze.
  std::vector<std::string> paths = hooks.List();
  for (auto path = paths.rbegin(); path != paths.rend(); ++path) {
    *recovered.thaw.add_hooks() = hooks.Run(*path, "thaw", hook_timeout, [] { return false; });
  }
  return recovered;
}

absl::Status ThawForeignFreezes(Freezer& freezer, pb::ThawResponse& response) {
  STILL_ASSIGN_OR_RETURN(std::vector<FrozenFileSystem> opened, OpenEverything(freezer));
  uint32_t before = response.thawed();
  STILL_RETURN_IF_ERROR(ThawAll(opened, response));
  if (response.thawed() != before) response.set_cause(pb::REQUESTED);
  return absl::OkStatus();
}

}  // namespace still::agent
