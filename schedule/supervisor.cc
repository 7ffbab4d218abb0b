#include "schedule/supervisor.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "schedule/lost_schedules.h"
#include "session/control/session_registry.h"
#include "snapshot/drill.h"
#include "store/config.h"

namespace still::schedule {
namespace {

// History that nobody asks for after this long; the newest row of each schedule and session stays.
constexpr absl::Duration kHistoryKept = absl::Hours(24 * 400);
constexpr absl::Duration kAskSessionsEvery = absl::Seconds(10);
// A command waits so long for channels that take their time; what was not told by then is tried by whoever comes next.
constexpr absl::Duration kLongestTelling = absl::Seconds(70);
constexpr absl::Duration kLookAtTelling = absl::Milliseconds(50);
// How long a turn waits for a repository to open: it holds up whoever asks for a report.
constexpr absl::Duration kLongestOpening = absl::Seconds(2);

}  // namespace

std::string SocketPath(const std::string& state) { return JoinPath(state, "stilld.sock"); }

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Open(const SupervisorOptions& options) {
  std::unique_ptr<Supervisor> made(new Supervisor(options));
  made->announcer_ = std::make_unique<HookAnnouncer>(options.announcer);
  ProcessHostOptions host{
      .state = options.state,
      .command = {options.worker_program, "--state", options.state, "--repo", options.repository.path}};
  if (!options.repository.credentials.key_file.empty()) {
    host.command.insert(host.command.end(), {"--key-file", options.repository.credentials.key_file});
  }
  host.command.push_back("--execute");
  host.passphrase = options.repository.credentials.passphrase;
  absl::MutexLock lock(&made->mutex_);
  // Where it must be there, nothing is made before it is.
  absl::StatusOr<Opened> opened =
      made->TryToOpen(options.without_repository ? options.first_opening : absl::InfiniteDuration());
  if (!opened.ok() && !options.without_repository) return opened.status();
  STILL_ASSIGN_OR_RETURN(made->book_, store::Book::Open({.path = store::BookPath(options.state)}));
  STILL_RETURN_IF_ERROR(NoteWhetherNew(*made->book_));
  made->schedules_ = std::make_unique<StoredBook>(*made->book_, HostTimeZone::Real());
  made->host_ = std::make_unique<ProcessHost>(options.repository.here, std::move(host));
  made->scheduler_ = std::make_unique<Scheduler>(
      *made->schedules_, *made->host_, *made->announcer_, Clock::Real(),
      SchedulerOptions{
          .max_running = options.max_running, .failing_after = options.failing_after, .daemon = options.daemon});
  const absl::Status used = made->Use(std::move(opened));
  if (!used.ok() && !options.without_repository) return used;
  if (!used.ok()) LogError("it begins without its repository", {{"error", used.ToString()}});
  return made;
}

absl::StatusOr<Supervisor::Opened> Supervisor::OpenNow(const store::RepositoryOptions& options) {
  Opened opened;
  STILL_ASSIGN_OR_RETURN(opened.repository, store::Repository::Open(options));
  STILL_ASSIGN_OR_RETURN(std::string path,
                         store::CatalogPath(options.path, opened.repository->id(), opened.repository->encrypted()));
  STILL_ASSIGN_OR_RETURN(opened.catalog, store::Catalog::Open({.path = path}));
  return opened;
}

absl::StatusOr<Supervisor::Opened> Supervisor::TryToOpen(absl::Duration wait) {
  auto opened = opening_.Try([options = options_.repository] { return OpenNow(options); }, wait);
  if (opened.has_value()) return *std::move(opened);
  return absl::DeadlineExceededError(
      absl::StrCat(options_.repository.path, ": it does not answer; look whether it can be read"));
}

absl::Status Supervisor::Use(absl::StatusOr<Opened> opened) {
  why_closed_ = opened.status();
  if (!opened.ok()) return why_closed_;
  host_->UseRepository(*opened->repository);
  repository_ = std::move(opened->repository);
  catalog_ = std::move(opened->catalog);
  why_closed_ = TakeOverOnce();
  // What could not be asked of it is asked in this turn.
  scheduler_->Reload();
  return why_closed_;
}

absl::Status Supervisor::TakeOverOnce() {
  if (taken_over_) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(TakeOverFromCatalog(*book_, options_.repository.path, *repository_));
  STILL_RETURN_IF_ERROR(
      NoteLostSchedules(*book_, *repository_, *catalog_, options_.repository.here, Clock::Real().Now()));
  taken_over_ = true;
  // Who began without it knows less.
  return charge_.valid() ? scheduler_->Load() : absl::OkStatus();
}

// Of an encrypted repository the catalog lies elsewhere: it is still there when the repository is not.
absl::Status Supervisor::LookWhetherItIsThere() {
  const std::string& path = options_.repository.path;
  auto opened = looking_.Try([config = JoinPath(path, store::kConfigObject)] { return OpenFile(config, O_RDONLY); },
                             kLongestOpening);
  if (!opened.has_value()) return absl::DeadlineExceededError(absl::StrCat(path, ": it does not answer"));
  return opened->status();
}

// A catalog is a cache: whoever deletes or rebuilds it must not stop the schedules.
absl::Status Supervisor::KeepRepositoryOpen() {
  absl::Status why = why_closed_;
  if (why.ok()) why = LookWhetherItIsThere();
  if (why.ok()) why = catalog_->CheckNotReplaced();
  if (why.ok()) return why;
  if (absl::Status used = Use(TryToOpen(kLongestOpening)); !used.ok()) {
    return Annotate(used, "the repository cannot be opened");
  }
  LogInfo("the repository was opened anew", {{"reason", why.ToString()}});
  return absl::OkStatus();
}

absl::Status Supervisor::TakeCharge() {
  absl::MutexLock lock(&mutex_);
  return TakeChargeLocked();
}

absl::Status Supervisor::TakeChargeLocked() {
  if (charge_.valid()) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(MakeDirectories(options_.state));
  const std::string path = JoinPath(options_.state, "scheduler.lock");
  STILL_ASSIGN_OR_RETURN(OwnedFd charge, OpenFile(path, O_RDWR | O_CREAT));
  if (::flock(charge.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(errno, absl::StrCat("lock ", path));
    return absl::UnavailableError(absl::StrCat("another process is in charge of the schedules in ", options_.state));
  }
  charge_ = std::move(charge);
  // Guests first: everything else can wait.
  if (absl::StatusOr<int> healed = host_->HealSessions(); !healed.ok()) {
    LogWarning("sessions not looked at", {{"error", healed.status().ToString()}});
  }
  host_->watch().Start(kAskSessionsEvery);
  STILL_RETURN_IF_ERROR(scheduler_->Recover());
  STILL_RETURN_IF_ERROR(host_->SweepLocks());
  if (absl::Status swept = snapshot::SweepDrills(*book_, session::SessionRegistry(options_.state)); !swept.ok()) {
    LogWarning("drills that were killed are not swept", {{"error", swept.ToString()}});
  }
  TrimRuns();
  return absl::OkStatus();
}

// What is left too long costs room, and nothing else: the next day takes it too.
void Supervisor::TrimRuns() {
  const absl::Duration time = Clock::Real().Monotonic();
  if (time - trimmed_at_ < options_.trim_every) return;
  trimmed_at_ = time;
  if (absl::Status trimmed = book_->TrimRuns(Clock::Real().Now() - kHistoryKept); !trimmed.ok()) {
    LogWarning("old runs are not removed", {{"error", trimmed.ToString()}});
  }
}

absl::StatusOr<schedulepb::CheckReport> Supervisor::LookForTrouble(const std::string& trouble) {
  absl::Status looked;
  {
    absl::MutexLock lock(&mutex_);
    scheduler_->OnlyLook();
    host_->watch().AskOnce();
    STILL_RETURN_IF_ERROR(scheduler_->Recover());
    if (!trouble.empty()) scheduler_->RaiseTrouble(trouble);
    looked = scheduler_->Step().status();
  }
  // Also when the look has failed: what it found is under way already.
  FinishTelling();
  STILL_RETURN_IF_ERROR(looked);
  absl::MutexLock lock(&mutex_);
  return ReportLocked();
}

void Supervisor::FinishTelling() {
  const absl::Duration give_up = Clock::Real().Monotonic() + kLongestTelling;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (!scheduler_->Telling()) return;
    }
    if (Clock::Real().Monotonic() > give_up) return;
    Clock::Real().Sleep(kLookAtTelling);
  }
}

absl::StatusOr<schedulepb::CheckReport> Supervisor::Report() {
  absl::MutexLock lock(&mutex_);
  // Whoever is not in charge knows nothing yet, and only looks.
  if (!charge_.valid()) STILL_RETURN_IF_ERROR(scheduler_->Load());
  return ReportLocked();
}

schedulepb::CheckReport Supervisor::ReportLocked() {
  schedulepb::CheckReport report;
  if (absl::Time turned = scheduler_->last_full_turn(); turned != absl::InfinitePast()) {
    report.set_turned_unix_ns(absl::ToUnixNanos(turned));
  }
  for (const auto& [key, alert] : scheduler_->alerts().all()) {
    if (alert.over.has_value() || alert.quiet) continue;
    schedulepb::CheckReport::Problem& problem = *report.add_problems();
    problem.set_kind(EventName(alert.event.kind));
    problem.set_schedule(alert.event.schedule);
    problem.set_session(alert.event.session);
    problem.set_since_unix_ns(absl::ToUnixNanos(alert.event.at));
    problem.set_message(alert.event.message);
    problem.set_delivered(alert.delivered());
  }
  for (const Cover& cover : scheduler_->Coverage()) {
    schedulepb::CheckReport::Cover& one = *report.add_machines();
    one.set_session(cover.session.name);
    one.set_running(cover.session.running);
    one.set_schedule(cover.schedule);
    one.set_level(NameOfLevel(cover.promised));
    if (cover.newest.has_value()) one.set_newest_unix_ns(absl::ToUnixNanos(*cover.newest));
    one.set_newest_level(NameOfLevel(cover.newest_level));
    one.set_max_age_s(absl::ToInt64Seconds(cover.max_age));
    one.set_stale(cover.stale);
  }
  return report;
}

absl::StatusOr<absl::Duration> Supervisor::Step() {
  absl::MutexLock lock(&mutex_);
  const absl::Status repository = KeepRepositoryOpen();
  if (charge_.valid()) TrimRuns();
  // Also without a repository: snapshots grow old, and somebody waits to be told.
  return scheduler_->Step(repository);
}

absl::StatusOr<std::shared_ptr<store::Repository>> Supervisor::repository() {
  absl::MutexLock lock(&mutex_);
  if (repository_ != nullptr) return repository_;
  return absl::UnavailableError(absl::StrCat("the repository cannot be opened: ", why_closed_.message()));
}

void Supervisor::Sleep(absl::Duration time) {
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&woken_), time);
  woken_ = false;
}

void Supervisor::Wake() {
  absl::MutexLock lock(&mutex_);
  woken_ = true;
}

void Supervisor::Drain() {
  absl::MutexLock lock(&mutex_);
  scheduler_->Drain();
}

size_t Supervisor::running() {
  absl::MutexLock lock(&mutex_);
  return scheduler_->running();
}

absl::StatusOr<BegunRuns> Supervisor::RunNow(const std::string& schedule, const std::vector<std::string>& sessions) {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(TakeChargeLocked());
  woken_ = true;
  auto begun = scheduler_->RunNow(schedule, sessions);
  // Without stilld nobody takes another turn.
  if (absl::Status kept = scheduler_->Keep(); !kept.ok()) {
    LogWarning("the book does not take what is planned", {{"error", kept.ToString()}});
  }
  return begun;
}

void Supervisor::SchedulesChanged() {
  absl::MutexLock lock(&mutex_);
  scheduler_->Reload();
  woken_ = true;
}

absl::StatusOr<std::vector<SessionState>> Supervisor::KnownSessions() {
  absl::MutexLock lock(&mutex_);
  if (!charge_.valid()) return host_->Sessions();
  return scheduler_->sessions();
}

absl::StatusOr<std::vector<SessionState>> Supervisor::Sessions() {
  absl::MutexLock lock(&mutex_);
  return host_->Sessions();
}

}  // namespace still::schedule
