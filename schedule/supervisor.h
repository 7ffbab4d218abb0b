// Supervisor: a repository's schedules on this host, with everything that belongs to them. Whoever is in charge of them
// (stilld, or a command on a host without it; one at a time, by a lock in the state directory) makes them run.
//
//   STILL_ASSIGN_OR_RETURN(auto supervisor, Supervisor::Open(options));
//   STILL_RETURN_IF_ERROR(supervisor->TakeCharge());
//   for (;;) { STILL_ASSIGN_OR_RETURN(absl::Duration wait, supervisor->Step()); supervisor->Sleep(wait); }
//
// Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "schedule/announcements.h"
#include "schedule/in_background.h"
#include "schedule/process_host.h"
#include "schedule/scheduler.h"
#include "schedule/stored_book.h"
#include "store/catalog/catalog.h"
#include "store/repository.h"

namespace still::schedule {

struct SupervisorOptions {
  std::string state;  // The state directory.
  store::RepositoryOptions repository;
  int max_running = 2;
  // Takes turns all the time, and is missed when it does not.
  bool daemon = false;
  // Turns that fail for so long are told. Zero: at once, for whoever takes only one.
  absl::Duration failing_after = SchedulerOptions().failing_after;
  AnnouncerOptions announcer;
  std::string worker_program;  // stilld.
  // Begins also while the repository cannot be opened (it is not mounted, or hangs): that is told as long as it lasts, each
  // turn tries again, and what needs no repository is done.
  bool without_repository = false;
  // How long it waits for one before it begins without it. systemd allows 90 s.
  absl::Duration first_opening = absl::Seconds(30);
  // History that nobody asks for any more is removed so often.
  absl::Duration trim_every = absl::Hours(24);
};

class Supervisor {
 public:
  static absl::StatusOr<std::unique_ptr<Supervisor>> Open(const SupervisorOptions& options);

  // Start-up: takes the lock (UNAVAILABLE: somebody else is in charge), heals sessions, sweeps what was left behind, and
  // closes or adopts the runs that an earlier process began. No-op when it is in charge already.
  absl::Status TakeCharge() ABSL_LOCKS_EXCLUDED(mutex_);
  // For one that is not in charge: looks for what is wrong, tells it, waits until it was told (or cannot be), and begins
  // nothing. `trouble`: what the caller found wrong with the schedules themselves, or empty.
  absl::StatusOr<schedulepb::CheckReport> LookForTrouble(const std::string& trouble) ABSL_LOCKS_EXCLUDED(mutex_);
  // What is wrong now, as far as it is known without doing anything.
  absl::StatusOr<schedulepb::CheckReport> Report() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until alerts were told, or could not be.
  void FinishTelling() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<absl::Duration> Step() ABSL_LOCKS_EXCLUDED(mutex_);
  // Until something has changed, at most this long.
  void Sleep(absl::Duration time) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends a Sleep().
  void Wake() ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing new is begun any more.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t running() ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes charge if nobody is.
  absl::StatusOr<BegunRuns> RunNow(const std::string& schedule, const std::vector<std::string>& sessions)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Schedules were changed in the book.
  void SchedulesChanged() ABSL_LOCKS_EXCLUDED(mutex_);

  store::Book& book() { return *book_; }
  StoredBook& schedules() { return *schedules_; }
  // It may be opened anew at any time: keep what is given for as long as it is used. UNAVAILABLE: it never could be opened,
  // and why.
  absl::StatusOr<std::shared_ptr<store::Repository>> repository() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<SessionState>> Sessions() ABSL_LOCKS_EXCLUDED(mutex_);
  // As they were when the schedules last looked, a few seconds ago; reads no directory.
  absl::StatusOr<std::vector<SessionState>> KnownSessions() ABSL_LOCKS_EXCLUDED(mutex_);
  const std::string& state() const { return options_.state; }
  const HostIdentity& here() const { return options_.repository.here; }
  const std::string& repository_path() const { return options_.repository.path; }

 private:
  explicit Supervisor(SupervisorOptions options) : options_(std::move(options)) {}
  absl::Status TakeChargeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TrimRuns() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // With its catalog, of which is asked whether somebody has replaced it.
  struct Opened {
    std::unique_ptr<store::Repository> repository;
    std::unique_ptr<store::Catalog> catalog;
  };
  static absl::StatusOr<Opened> OpenNow(const store::RepositoryOptions& options);
  // Waits so long. DEADLINE_EXCEEDED: it hangs.
  absl::StatusOr<Opened> TryToOpen(absl::Duration wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Use(absl::StatusOr<Opened> opened) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeOverOnce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status LookWhetherItIsThere() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status KeepRepositoryOpen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  schedulepb::CheckReport ReportLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const SupervisorOptions options_;
  std::unique_ptr<store::Book> book_;
  std::unique_ptr<StoredBook> schedules_;
  std::unique_ptr<HookAnnouncer> announcer_;
  absl::Mutex mutex_;
  InBackground<Opened> opening_ ABSL_GUARDED_BY(mutex_);
  InBackground<OwnedFd> looking_ ABSL_GUARDED_BY(mutex_);
  absl::Status why_closed_ ABSL_GUARDED_BY(mutex_);                        // Of the last try to open it.
  std::shared_ptr<store::Repository> repository_ ABSL_GUARDED_BY(mutex_);  // Shared with those who read it.
  std::unique_ptr<store::Catalog> catalog_ ABSL_GUARDED_BY(mutex_);
  OwnedFd charge_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<ProcessHost> host_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Scheduler> scheduler_ ABSL_GUARDED_BY(mutex_);
  absl::Duration trimmed_at_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();  // By the monotonic clock.
  bool taken_over_ ABSL_GUARDED_BY(mutex_) = false;  // What a version without a book kept in the catalog.
  bool woken_ ABSL_GUARDED_BY(mutex_) = false;
};

// Where stilld listens.
std::string SocketPath(const std::string& state);

}  // namespace still::schedule
