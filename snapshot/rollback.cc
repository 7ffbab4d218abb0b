#include "snapshot/rollback.h"

#include <stdio.h>

#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/host_identity.h"
#include "base/log.h"
#include "base/undo.h"
#include "session/control/session_lock.h"
#include "snapshot/disk_swap.h"
#include "snapshot/machine.h"
#include "snapshot/restore_plan.h"
#include "snapshot/rollback_journal.h"
#include "snapshot/session_files.h"
#include "snapshot/take_snapshot.h"

namespace still::snapshot {
namespace {

constexpr absl::Duration kStopTimeout = absl::Seconds(60);

// The session runs, so the rollback has been done. Unless somebody kills us right now, the journal is not needed any more.
void LogIfError(const absl::Status& noted) {
  if (!noted.ok()) LogWarning("rollback journal", {{"error", noted.ToString()}});
}

class RollbackRun {
 public:
  RollbackRun(store::Repository& repository, const session::SessionRegistry& sessions, const RollbackOptions& options,
              RollbackJournal journal)
      : repository_(repository), sessions_(sessions), options_(options), journal_(std::move(journal)) {}

  absl::StatusOr<RolledBack> Run();

 private:
  absl::Status Check();
  absl::Status Stage();
  absl::Status TakeSafety();
  absl::StatusOr<RestoredSession> Replace();
  absl::Status ComeBack(const absl::Status& why);
  absl::Status StartSafety();
  bool OutsideDirectory(const sessionpb::DiskFile& disk) const {
    return !absl::StartsWith(disk.path(), directory_ + "/");
  }
  // `lock`: on the directory that the session is started in; invalid: taken then.
  session::LaunchOptions LaunchOf(const MemoryImage& memory, const OwnedFd& lock) const {
    return {.ram_fd = memory.fd.get(), .lock_fd = lock.get(), .on_step = [this](const std::string& step) {
              options_.progress({.stage = step});
            }};
  }
  // Those of the session's disks that keep their place.
  std::vector<const sessionpb::DiskFile*> KeptPlaces(const sessionpb::SessionConfig& next) const;

  store::Repository& repository_;
  const session::SessionRegistry& sessions_;
  const RollbackOptions& options_;
  RollbackJournal journal_;  // Goes last: it settles what the others have not.
  RestoreOptions restore_;
  session::SessionEntry entry_;
  std::string directory_;
  OwnedFd lock_;            // On it, from the old session's end on.
  OwnedFd staging_lock_;    // On the directory that takes its place.
  std::string machine_id_;  // Stays what it was.
  const std::string staging_ = journal_.staging();
  const std::string before_ = journal_.before();
  RestorePlan plan_;
  MemoryImage memory_;
  sessionpb::SessionConfig config_;
  DiskSwap disks_{journal_.tag()};
  manifestpb::Snapshot safety_;
  absl::Duration stopped_at_;
  UndoStack undo_;
};

absl::StatusOr<RolledBack> RollbackRun::Run() {
  STILL_RETURN_IF_ERROR(Check());
  STILL_RETURN_IF_ERROR(Stage());
  STILL_RETURN_IF_ERROR(TakeSafety());
  options_.progress({.stage = "stop"});
  stopped_at_ = Clock::Real().Monotonic();
  STILL_RETURN_IF_ERROR(Annotate(sessions_.End(options_.session, kStopTimeout), "stop the session"));
  // Nobody may take the directory for that of a session that has ended. Who has done so already keeps it.
  absl::StatusOr<OwnedFd> lock = session::LockSession(directory_);
  if (absl::IsFailedPrecondition(lock.status())) {
    return Annotate(lock.status(), "the session was stopped, and is somebody else's now");
  }
  if (!lock.ok()) return ComeBack(lock.status());
  lock_ = *std::move(lock);
  absl::StatusOr<RestoredSession> restored = Replace();
  if (restored.ok()) LogIfError(journal_.Started());
  if (!restored.ok()) return ComeBack(restored.status());
  for (const std::string& note : plan_.notes) restored->report.add_warnings(note);
  // From here on the session runs: what cannot be cleaned up is told, and no error.
  if (absl::Status discarded = FirstError(disks_.Discard(), RemoveTree(before_)); !discarded.ok()) {
    restored->report.add_warnings(absl::StrCat("not removed: ", discarded.message()));
  }
  return RolledBack{.snapshot = plan_.snapshot,
                    .safety = safety_,
                    .warm = plan_.warm,
                    .down = Clock::Real().Monotonic() - stopped_at_,
                    .session = *std::move(restored)};
}

absl::Status RollbackRun::Check() {
  STILL_ASSIGN_OR_RETURN(entry_, sessions_.Find(options_.session));
  if (!entry_.ready) {
    return absl::FailedPreconditionError(absl::StrCat("session ", options_.session,
                                                      " is not running; start the snapshot anew: still restore ",
                                                      options_.snapshot, " --as NAME"));
  }
  directory_ = entry_.directory;
  restore_ = {.snapshot = options_.snapshot,
              .sessions = {options_.session},
              .cold = options_.cold,
              .without_agent = options_.without_agent,
              .vsock_backend = entry_.config.vsock_backend(),
              .patience = options_.patience,
              .hot = options_.hot,
              .progress = options_.progress};
  STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot found, repository_.FindSnapshot(options_.snapshot));
  restore_.snapshot = found.id();  // The safety snapshot must not become what "latest" means.
  STILL_ASSIGN_OR_RETURN(HostIdentity here, ReadHostIdentity(sessions_.root()));
  const MachineIdentity machine = IdentityOf(here, entry_.config);
  machine_id_ = machine.machine_id;
  const bool own = IsSnapshotOf(found, machine);
  if (!own && !options_.other_machine) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", options_.snapshot, " (", found.id().substr(0, 12),
                     ") is of another machine: ", found.session(), found.host().empty() ? "" : " on ", found.host(),
                     "; to put its disks and memory into ", options_.session, " all the same, give --other-machine"));
  }
  restore_.keep_identity = own;
  STILL_ASSIGN_OR_RETURN(plan_, PlanRestore(repository_, restore_, sessions_.root()));
  for (const sessionpb::DiskFile& disk : entry_.config.disks()) {
    if (OutsideDirectory(disk)) STILL_RETURN_IF_ERROR(DiskSwap::Check(disk));
  }
  return absl::OkStatus();
}

std::vector<const sessionpb::DiskFile*> RollbackRun::KeptPlaces(const sessionpb::SessionConfig& next) const {
  std::set<std::string> wanted;
  for (const manifestpb::Disk& disk : next.machine().disks()) wanted.insert(disk.name());
  std::vector<const sessionpb::DiskFile*> kept;
  for (const sessionpb::DiskFile& disk : entry_.config.disks()) {
    if (OutsideDirectory(disk) && wanted.contains(disk.name())) kept.push_back(&disk);
  }
  return kept;
}

// Everything that takes long, while the session runs on.
absl::Status RollbackRun::Stage() {
  config_ = ConfigFor(plan_, restore_, options_.session);
  config_.set_machine_id(machine_id_);
  const std::vector<const sessionpb::DiskFile*> kept = KeptPlaces(config_);
  std::vector<std::string> paths;
  for (const sessionpb::DiskFile* disk : kept) {
    STILL_ASSIGN_OR_RETURN(paths.emplace_back(), DiskSwap::RealPath(*disk));
  }
  STILL_RETURN_IF_ERROR(journal_.Begin(paths));
  // No session can be called so, and no list shows it.
  STILL_RETURN_IF_ERROR(MakeDirectories(staging_, 0700));
  undo_.Push("remove the staged session", [staging = staging_] { return RemoveTree(staging); });
  STILL_ASSIGN_OR_RETURN(staging_lock_, session::LockSession(staging_));
  config_.set_time_limit_s(entry_.config.time_limit_s());
  if (plan_.warm) {
    STILL_ASSIGN_OR_RETURN(memory_, LoadMemory(repository_, plan_, restore_));
    config_.mutable_restore()->set_private_mapping(memory_.shared);
  }
  SessionFileOptions files{.directory = staging_,
                           .boot_files = BootFileDirectory(sessions_),
                           .used_as = directory_,
                           .device_state = plan_.warm,
                           .progress = options_.progress};
  for (const sessionpb::DiskFile* disk : kept) files.without_disks.insert(disk->name());
  STILL_RETURN_IF_ERROR(WriteSessionFiles(repository_, plan_.snapshot, files, config_));
  for (const sessionpb::DiskFile* disk : kept) {
    STILL_RETURN_IF_ERROR(disks_.Stage(repository_, plan_.snapshot, *disk, options_.progress));
    for (sessionpb::DiskFile& file : *config_.mutable_disks()) {
      if (file.name() == disk->name()) file = *disk;
    }
  }
  return absl::OkStatus();
}

absl::Status RollbackRun::TakeSafety() {
  TakeOptions take{.name = options_.safety_name, .progress = options_.progress};
  if (take.name.empty()) {
    take.name = absl::StrCat(options_.session, "-before-rollback-",
                             absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone()));
  }
  take.labels = {{"rollback-to", plan_.snapshot.id()}};
  absl::StatusOr<manifestpb::Snapshot> taken = TakeSnapshot(sessions_, options_.session, repository_, take);
  if (!taken.ok()) return Annotate(taken.status(), "the session runs on as it was; no safety snapshot could be taken");
  safety_ = *std::move(taken);
  return absl::OkStatus();
}

absl::StatusOr<RestoredSession> RollbackRun::Replace() {
  STILL_RETURN_IF_ERROR(disks_.Swap());
  STILL_RETURN_IF_ERROR(Rename(directory_, before_));
  if (absl::Status placed = Rename(staging_, directory_); !placed.ok()) {
    return FirstError(placed, Rename(before_, directory_));
  }
  options_.progress({.stage = "start"});
  absl::StatusOr<RestoredSession> restored =
      LaunchRestored(sessions_, config_, LaunchOf(memory_, staging_lock_), restore_);
  if (restored.ok()) return restored;
  absl::Status back = Rename(directory_, staging_);
  if (back.ok()) back = Rename(before_, directory_);
  return FirstError(restored.status(), back);
}

// The old files are back in their places; the old memory is in the safety snapshot alone.
absl::Status RollbackRun::ComeBack(const absl::Status& why) {
  absl::Status back = disks_.SwapBack();
  if (back.ok()) back = StartSafety();
  if (back.ok()) {
    return Annotate(why, absl::StrCat("the rollback failed; session ", options_.session,
                                      " goes on from its safety snapshot ", safety_.name()));
  }
  return Annotate(
      why, absl::StrCat("the rollback failed, and the session could not be started again (", back.message(),
                        "); start it with: still restore ", safety_.name(), " --keep-identity --as NAME; first"));
}

absl::Status RollbackRun::StartSafety() {
  RestoreOptions restore = restore_;
  restore.snapshot = safety_.id();
  restore.keep_identity = true;
  restore.cold = false;
  STILL_ASSIGN_OR_RETURN(RestorePlan plan, PlanRestore(repository_, restore, sessions_.root()));
  sessionpb::SessionConfig config = ConfigFor(plan, restore, options_.session);
  config.set_machine_id(machine_id_);
  STILL_ASSIGN_OR_RETURN(MemoryImage memory, LoadMemory(repository_, plan, restore));
  config.mutable_restore()->set_private_mapping(memory.shared);
  // Its disks went on a little after the safety snapshot: memory and disks must be of one point.
  DiskSwap disks(journal_.safety_tag());
  const std::vector<const sessionpb::DiskFile*> kept = KeptPlaces(config);
  const std::string fresh = JoinPath(directory_, "safety");
  STILL_RETURN_IF_ERROR(MakeDirectories(fresh, 0700));
  SessionFileOptions files{.directory = fresh,
                           .boot_files = BootFileDirectory(sessions_),
                           .used_as = fresh,
                           .device_state = plan.warm,
                           .progress = options_.progress};
  for (const sessionpb::DiskFile* disk : kept) files.without_disks.insert(disk->name());
  STILL_RETURN_IF_ERROR(WriteSessionFiles(repository_, plan.snapshot, files, config));
  for (const sessionpb::DiskFile* disk : kept) {
    STILL_RETURN_IF_ERROR(disks.Stage(repository_, plan.snapshot, *disk, options_.progress));
    for (sessionpb::DiskFile& file : *config.mutable_disks()) {
      if (file.name() == disk->name()) file = *disk;
    }
  }
  STILL_RETURN_IF_ERROR(disks.Swap());
  STILL_RETURN_IF_ERROR(LaunchRestored(sessions_, config, LaunchOf(memory, lock_), restore).status());
  LogIfError(journal_.Started());
  return disks.Discard();
}

}  // namespace

absl::StatusOr<RolledBack> Rollback(store::Repository& repository, const session::SessionRegistry& sessions,
                                    const RollbackOptions& options) {
  STILL_ASSIGN_OR_RETURN(RollbackJournal journal, RollbackJournal::Open(sessions, options.session));
  return RollbackRun(repository, sessions, options, std::move(journal)).Run();
}

}  // namespace still::snapshot
