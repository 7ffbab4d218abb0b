// The steps of Quiesce. They hold no lock, return as soon as the run is cancelled, and leave it to the controller to undo
// what they did.
#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "guest-agent/bounded_call.h"
#include "guest-agent/freeze_run.h"

namespace still::agent {

// What FreezeOpened learned of each superblock, by its device.
struct FreezeController::Unfrozen {
  std::set<DeviceId> frozen;
  std::set<DeviceId> foreign;            // Frozen by somebody else.
  std::vector<FrozenFileSystem> unable;  // Cannot freeze at all.
};

namespace {

// The others stand still meanwhile; what was dirty was written back before the freeze.
constexpr absl::Duration kCleanSyncLimit = absl::Seconds(2);

// syncfs cannot be interrupted: one that hangs is left behind, and keeps the file system open.
absl::Status SyncWithin(absl::Duration limit, const FrozenFileSystem& fs) {
  absl::StatusOr<bool> done = CallWithin<bool>(limit, absl::StrCat("write back ", fs.reached.path()),
                                               [handle = fs.handle]() -> absl::StatusOr<bool> {
                                                 STILL_RETURN_IF_ERROR(handle->Sync());
                                                 return true;
                                               });
  return done.status();
}

pb::HookResult NotStarted(const std::string& path, absl::Duration limit) {
  pb::HookResult result;
  result.set_path(path);
  result.set_verb("freeze");
  result.set_exit_code(-1);
  result.set_output(absl::StrCat("not started: all hooks together have ", absl::FormatDuration(limit)));
  return result;
}

void AddSkipped(const FrozenFileSystem& fs, pb::SkippedMount::Reason reason, pb::QuiesceResponse& response) {
  pb::SkippedMount& skipped = *response.add_skipped();
  skipped.set_mount_point(fs.mount.mount_point());
  skipped.set_fs_type(fs.mount.fs_type());
  skipped.set_reason(reason);
}

// Nothing would tell of a write to it before the thaw.
void AddUncounted(const DeviceId& device, const std::set<std::string>& names, std::vector<pb::Disk>& disks) {
  for (pb::Disk& disk : disks) {
    if (!names.contains(disk.name())) continue;
    pb::DiskUse& use = *disk.add_uses();
    use.set_kind(pb::DiskUse::UNKNOWN);
    use.set_state(pb::DiskUse::NOT_COVERED);
    use.set_device(device.ToString());
    use.set_detail("a write to it is under way, or the kernel does not count them");
  }
}

// Whoever has come since the first look.
void AddLateOpeners(const OpenForWriting& first, const OpenForWriting& again, DiskReport& report) {
  auto add = [&report](const DiskReport::Node& node, const std::string& process, absl::string_view detail) {
    for (pb::Disk& disk : report.disks) {
      // A list that is full ends with a use that is not covered.
      if (!node.disks.contains(disk.name()) || disk.uses_size() >= kMaxDiskUses) continue;
      pb::DiskUse& use = *disk.add_uses();
      use.set_kind(pb::DiskUse::OPENED);
      use.set_state(pb::DiskUse::NOT_COVERED);
      use.set_device(node.name);
      use.set_name(process);
      use.set_detail(std::string(detail));
    }
  };
  for (const auto& [device, node] : report.nodes) {
    if (auto opener = again.devices.find(device); opener != again.devices.end() && !first.devices.contains(device)) {
      add(node, opener->second, "has it open for writing");
    }
    // On what cannot freeze an open file is a writer.
    if (!report.watched.contains(device) || first.file_systems.contains(device)) continue;
    if (auto opener = again.file_systems.find(device); opener != again.file_systems.end()) {
      add(node, opener->second, "has a file on it open for writing");
    }
  }
}

}  // namespace

absl::Status FreezeController::CheckCancelled(const Run& run) {
  absl::MutexLock lock(&mutex_);
  if (run.cause == pb::THAW_CAUSE_UNSPECIFIED) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("quiesce: given up: ", CauseName(run.cause)));
}

absl::Status FreezeController::FreezeAll(Run& run, const pb::QuiesceRequest& request) {
  std::vector<std::string> requested(request.mounts().begin(), request.mounts().end());
  STILL_ASSIGN_OR_RETURN(MountSurvey survey, parts_.freezer.Survey());
  STILL_ASSIGN_OR_RETURN(FreezePlan plan, MakeFreezePlan(survey, requested));
  STILL_RETURN_IF_ERROR(parts_.marker.CheckOutside(survey, plan));
  parts_.freezer.PinMemory();
  if (!request.skip_presync()) {
    pb::QuiesceResponse unused;
    STILL_RETURN_IF_ERROR(SyncAll(OpenPlanned(parts_.freezer, plan, unused), run));
  }
  STILL_RETURN_IF_ERROR(RunFreezeHooks(run));
  // Surveyed again: hooks may have mounted or unmounted something.
  STILL_ASSIGN_OR_RETURN(survey, parts_.freezer.Survey());
  STILL_ASSIGN_OR_RETURN(plan, MakeFreezePlan(survey, requested));
  STILL_RETURN_IF_ERROR(parts_.marker.CheckOutside(survey, plan));
  OpenForWriting open = parts_.disks.FindMapped();
  open.Add(parts_.disks.FindOpen());
  std::vector<FrozenFileSystem> opened = OpenPlanned(parts_.freezer, plan, run.response);
  Unfrozen unfrozen;
  STILL_RETURN_IF_ERROR(FreezeOpened(std::move(opened), run, unfrozen));
  LookAtDisks(open, unfrozen, run);
  return absl::OkStatus();
}

absl::Status FreezeController::SyncAll(const std::vector<FrozenFileSystem>& opened, Run& run) {
  const absl::Duration start = parts_.clock.Monotonic();
  for (const FrozenFileSystem& fs : opened) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    absl::Status status = SyncWithin(start + run.presync_timeout - parts_.clock.Monotonic(), fs);
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(absl::StrCat("quiesce: the write-back of ", fs.mount.mount_point(),
                                                      " did not end; all of it has ",
                                                      absl::FormatDuration(run.presync_timeout)));
    }
    // The freeze syncs again, and what fails here fails there with more reason.
    if (!status.ok()) {
      LogWarning("cannot sync before the freeze", {{"mount", fs.mount.mount_point()}, {"error", status.ToString()}});
    }
  }
  run.response.set_presync_us(Microseconds(parts_.clock.Monotonic() - start));
  return absl::OkStatus();
}

absl::Status FreezeController::RunFreezeHooks(Run& run) {
  if (run.hook_policy == pb::HOOK_SKIP) return absl::OkStatus();
  const absl::Duration start = parts_.clock.Monotonic();
  const absl::Duration deadline = start + run.hooks_timeout;
  if (!thaw_hooks_.WaitUntilIdle(run.hooks_timeout, [&run] { return run.cancelled_flag.load(); })) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    return absl::FailedPreconditionError("quiesce: thaw hooks of the freeze before still run");
  }
  for (const std::string& path : parts_.hooks.List()) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    {
      // Before it runs: a hook that fails half-way is thawed as well.
      absl::MutexLock lock(&mutex_);
      run.hooks_run.push_back(path);
    }
    const absl::Duration left = deadline - parts_.clock.Monotonic();
    pb::HookResult result = left <= absl::ZeroDuration()
                                ? NotStarted(path, run.hooks_timeout)
                                : parts_.hooks.Run(path, "freeze", std::min(run.hook_timeout, left),
                                                   [&run] { return run.cancelled_flag.load(); });
    bool failed = result.exit_code() != 0;
    if (failed) {
      LogWarning("freeze hook failed", {{"hook", path}, {"exit", result.exit_code()}, {"output", result.output()}});
    }
    std::string output = result.output();
    *run.response.add_hooks() = std::move(result);
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    if (failed && run.hook_policy == pb::HOOK_FAIL) {
      return absl::FailedPreconditionError(absl::StrCat("hook ", path, " failed: ", output));
    }
  }
  run.response.set_hooks_us(Microseconds(parts_.clock.Monotonic() - start));
  return absl::OkStatus();
}

absl::Status FreezeController::FreezeOpened(std::vector<FrozenFileSystem> opened, Run& run, Unfrozen& unfrozen) {
  MarkedFreeze marked{run.token, {}};
  for (const FrozenFileSystem& fs : opened) marked.mounts.push_back(fs.reached);
  STILL_RETURN_IF_ERROR(Annotate(parts_.marker.Write(marked), "freeze marker"));
  parts_.set_quiet(true);
  {
    absl::MutexLock lock(&mutex_);
    run.freezing_begun = true;
    run.deadline = parts_.clock.Monotonic() + run.lease;
    parts_.timer.Arm(run.deadline);
  }
  absl::Duration start = parts_.clock.Monotonic();
  for (FrozenFileSystem& fs : opened) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    absl::Duration one = parts_.clock.Monotonic();
    int error = fs.handle->Freeze();
    if (error == EOPNOTSUPP || error == EBUSY) {
      // One file system that cannot freeze does not fail the others. A freeze of somebody else's is not ours to thaw,
      // not even by a successor that finds the marker.
      AddSkipped(fs, error == EBUSY ? pb::SkippedMount::ALREADY_FROZEN : pb::SkippedMount::NOT_SUPPORTED, run.response);
      std::erase_if(marked.mounts, [&fs](const auto& mount) { return mount.mount_id == fs.reached.mount_id; });
      STILL_RETURN_IF_ERROR(Annotate(parts_.marker.Write(marked), "freeze marker"));
      if (error == EBUSY) unfrozen.foreign.insert(fs.device);
      if (error == EOPNOTSUPP) unfrozen.unable.push_back(std::move(fs));
      continue;
    }
    if (error != 0) return ErrnoStatus(error, absl::StrCat("freeze ", fs.mount.mount_point()));
    fs.mount.set_freeze_us(Microseconds(parts_.clock.Monotonic() - one));
    *run.response.add_frozen() = fs.mount;
    unfrozen.frozen.insert(fs.device);
    absl::MutexLock lock(&mutex_);
    run.held.push_back(std::move(fs));
  }
  run.response.set_freeze_us(Microseconds(parts_.clock.Monotonic() - start));
  return CheckCancelled(run);  // The last freeze may have hung until the lease was over: nothing delays its thaw.
}

void FreezeController::LookAtDisks(const OpenForWriting& open, const Unfrozen& unfrozen, Run& run) {
  // Looked at again: what was mounted since the plan was made is not frozen.
  absl::StatusOr<MountSurvey> survey = parts_.freezer.Survey();
  if (!survey.ok()) {
    run.response.set_disks_unknown(std::string(survey.status().message()));
    return;
  }
  DiskFacts facts{.survey = *survey, .open = open, .frozen = unfrozen.frozen, .clean = {}, .foreign = unfrozen.foreign};
  std::map<DeviceId, uint64_t> writes;
  for (const FrozenFileSystem& fs : unfrozen.unable) facts.clean[fs.device] = WhyNotClean(fs, open, writes[fs.device]);
  DiskReport report = parts_.disks.Describe(facts);
  std::vector<Watched> watched;
  for (const auto& [device, disks] : report.watched) {
    auto counted = writes.find(device);
    std::optional<uint64_t> count =
        counted != writes.end() ? std::optional(counted->second) : parts_.disks.Writes(device);
    if (count) {
      watched.push_back({device, disks, *count});
    } else {
      AddUncounted(device, disks, report.disks);
    }
  }
  for (const auto& [device, disks] : report.watched_if_counted) {
    if (report.watched.contains(device)) continue;
    if (std::optional<uint64_t> count = parts_.disks.Writes(device)) watched.push_back({device, disks, *count});
  }
  // Once writes are counted: who opens a disk after this look is found by what it writes.
  const OpenForWriting again = parts_.disks.FindOpen();
  AddLateOpeners(open, again, report);
  if (open.incomplete.empty() && !again.incomplete.empty()) report.unknown = again.incomplete;
  for (pb::Disk& disk : report.disks) *run.response.add_disks() = std::move(disk);
  run.response.set_disks_unknown(report.unknown);
  absl::MutexLock lock(&mutex_);
  run.watched = std::move(watched);
}

std::string FreezeController::WhyNotClean(const FrozenFileSystem& fs, const OpenForWriting& open, uint64_t& writes) {
  // Its writes pass through a process, which holds what it likes.
  if (absl::StartsWith(fs.mount.fs_type(), "fuse")) return "a process serves it";
  if (auto opener = open.file_systems.find(fs.device); opener != open.file_systems.end()) {
    return absl::StrCat(opener->second, " has a file on it open for writing");
  }
  if (!SyncWithin(kCleanSyncLimit, fs).ok()) return "it could not be written back";
  std::optional<uint64_t> before = parts_.disks.Writes(fs.device);
  if (!before) return "the kernel does not count what is written to it";
  if (!SyncWithin(kCleanSyncLimit, fs).ok()) return "it could not be written back";
  std::optional<uint64_t> after = parts_.disks.Writes(fs.device);
  if (before != after) return "it is being written to";
  writes = *after;
  return "";
}

std::vector<std::string> FreezeController::WrittenSince(const std::vector<Watched>& watched) {
  std::set<std::string> written;
  for (const Watched& one : watched) {
    if (parts_.disks.Writes(one.device) != one.writes) written.insert(one.disks.begin(), one.disks.end());
  }
  return {written.begin(), written.end()};
}

}  // namespace still::agent
