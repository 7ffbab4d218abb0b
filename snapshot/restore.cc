#include "snapshot/restore.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/undo.h"
#include "session/control/session_process.h"
#include "session/session_config.h"
#include "snapshot/restore_plan.h"
#include "snapshot/rollback_journal.h"
#include "snapshot/session_files.h"

namespace still::snapshot {
namespace {

// Each waits for its guest most of the time; more at once would only starve each other of processors.
constexpr size_t kLaunchesAtOnce = 8;
constexpr absl::Duration kUndoTimeout = absl::Seconds(30);

absl::Status CheckNames(const std::vector<std::string>& names) {
  if (names.empty()) return absl::InvalidArgumentError("a restore needs the name of its session");
  std::set<std::string> seen;
  for (const std::string& name : names) {
    STILL_RETURN_IF_ERROR(session::ValidateSessionName(name));
    if (!seen.insert(name).second) return absl::InvalidArgumentError(absl::StrCat("session ", name, " is named twice"));
  }
  return absl::OkStatus();
}

class RestoreRun {
 public:
  RestoreRun(store::Repository& repository, const session::SessionRegistry& sessions, const RestoreOptions& options)
      : repository_(repository), sessions_(sessions), options_(options) {}

  absl::StatusOr<Restored> Run() {
    STILL_RETURN_IF_ERROR(CheckNames(options_.sessions));
    SweepRollbacks(sessions_);
    STILL_ASSIGN_OR_RETURN(plan_, PlanRestore(repository_, options_, sessions_.root()));
    STILL_RETURN_IF_ERROR(ClaimNames());
    STILL_ASSIGN_OR_RETURN(disk_secret_, DiskSecret(options_.lazy));
    const absl::Duration begun = Clock::Real().Monotonic();
    if (plan_.warm) {
      STILL_ASSIGN_OR_RETURN(memory_, LoadMemory(repository_, plan_, options_));
    }
    for (const std::string& name : options_.sessions) STILL_RETURN_IF_ERROR(WriteFiles(name));
    Restored restored{.snapshot = plan_.snapshot,
                      .warm = plan_.warm,
                      .hot = memory_.hot,
                      .materialised = Clock::Real().Monotonic() - begun};
    options_.progress({.stage = "start"});
    STILL_ASSIGN_OR_RETURN(restored.sessions, LaunchAll());
    undo_.Disarm();
    return restored;
  }

 private:
  absl::Status ClaimNames() {
    for (const std::string& name : options_.sessions) {
      STILL_ASSIGN_OR_RETURN(session::SessionPlace place, sessions_.Create(name));
      undo_.Push("remove a new session's directory", [this, path = place.directory] {
        return still_used_.contains(path) ? absl::OkStatus() : RemoveTree(path);
      });
      places_.push_back(std::move(place));
    }
    absl::MutexLock lock(&steps_mutex_);
    steps_.resize(places_.size());
    return absl::OkStatus();
  }

  absl::Status WriteFiles(const std::string& name) {
    sessionpb::SessionConfig config = ConfigFor(plan_, options_, name);
    if (plan_.warm) config.mutable_restore()->set_private_mapping(memory_.shared);
    const std::string directory = sessions_.Directory(name);
    const bool lazy = !options_.lazy.server_command.empty();
    STILL_RETURN_IF_ERROR(WriteSessionFiles(repository_, plan_.snapshot,
                                            {.directory = directory,
                                             .boot_files = BootFileDirectory(sessions_),
                                             .used_as = directory,
                                             .lazy_disks = lazy,
                                             .device_state = plan_.warm,
                                             .progress = options_.progress},
                                            config));
    if (lazy) DescribeDiskServer(options_.lazy, plan_.snapshot.id(), config);
    configs_.push_back(std::move(config));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<RestoredSession>> LaunchAll();
  // In order, or else by force: its directory goes next.
  absl::Status EndSession(const RestoredSession& session);
  absl::StatusOr<RestoredSession> LaunchOne(size_t index) {
    session::LaunchOptions launch{.ram_fd = memory_.fd.get(),
                                  .disk_secret_fd = disk_secret_.get(),
                                  .lock_fd = places_[index].lock.get(),
                                  .on_step = [this, index](const std::string& step) { Tell(index, step); }};
    STILL_ASSIGN_OR_RETURN(RestoredSession restored,
                           LaunchRestored(sessions_, configs_[index], std::move(launch), options_));
    Tell(index, "");
    for (const std::string& note : plan_.notes) restored.report.add_warnings(note);
    return restored;
  }

  // Progress shows one step: that of the first session that is not ready yet. Empty: it is.
  void Tell(size_t index, const std::string& step) {
    absl::MutexLock lock(&steps_mutex_);
    steps_[index] = step;
    auto first = std::find_if(steps_.begin(), steps_.end(), [](const std::string& s) { return !s.empty(); });
    if (first == steps_.end()) return;
    const std::string& name = options_.sessions[static_cast<size_t>(first - steps_.begin())];
    options_.progress({.stage = steps_.size() == 1 ? *first : absl::StrCat(*first, " (", name, ")")});
  }

  store::Repository& repository_;
  const session::SessionRegistry& sessions_;
  const RestoreOptions& options_;
  std::vector<session::SessionPlace> places_;  // In the order of options_.sessions.
  absl::Mutex steps_mutex_;
  std::vector<std::string> steps_ ABSL_GUARDED_BY(steps_mutex_);
  RestorePlan plan_;
  MemoryImage memory_;
  OwnedFd disk_secret_;                            // Of lazy restores; invalid when their server needs none.
  std::vector<sessionpb::SessionConfig> configs_;  // In the order of options_.sessions.
  std::set<std::string> still_used_;               // Directories of sessions that could not be ended.
  UndoStack undo_;
};

absl::StatusOr<std::vector<RestoredSession>> RestoreRun::LaunchAll() {
  std::vector<absl::StatusOr<RestoredSession>> results(configs_.size(), absl::CancelledError("not started"));
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  auto work = [&] {
    for (size_t i; !failed && (i = next++) < configs_.size();) {
      results[i] = LaunchOne(i);
      if (!results[i].ok()) failed = true;
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(kLaunchesAtOnce, configs_.size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();

  std::vector<RestoredSession> restored;
  absl::Status error;
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].ok()) {
      restored.push_back(*std::move(results[i]));
    } else if (error.ok() || absl::IsCancelled(error)) {
      error = configs_.size() == 1 ? results[i].status() : Annotate(results[i].status(), configs_[i].name());
    }
  }
  if (error.ok()) return restored;
  // All or none: whoever asked for N has no use for a part of them.
  for (const RestoredSession& session : restored) {
    absl::Status ended = EndSession(session);
    if (ended.ok()) continue;
    still_used_.insert(session.directory);
    error = absl::Status(error.code(),
                         absl::StrCat(error.message(), "; session ", session.name, " could not be ended and is kept (",
                                      ended.message(), "); try: still stop ", session.name));
  }
  return error;
}

absl::Status RestoreRun::EndSession(const RestoredSession& session) {
  absl::Status ended = sessions_.End(session.name, kUndoTimeout);
  if (ended.ok()) return ended;
  LogWarning("session did not end when asked", {{"session", session.name}, {"error", ended.ToString()}});
  ended = session::EndSessionProcess(session.directory);
  return absl::IsNotFound(ended) ? absl::OkStatus() : ended;
}

}  // namespace

absl::StatusOr<Restored> RestoreSnapshot(store::Repository& repository, const session::SessionRegistry& sessions,
                                         const RestoreOptions& options) {
  return RestoreRun(repository, sessions, options).Run();
}

}  // namespace still::snapshot
