#include "schedule/worker.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/clean_text.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/process.h"
#include "base/quantity.h"
#include "base/secret.h"
#include "schedule/machines.h"
#include "schedule/schedule.h"
#include "schedule/throttle.h"
#include "session/control/session_registry.h"
#include "session/session_config.h"
#include "snapshot/machine.h"
#include "snapshot/snapshot_of_disks.h"
#include "snapshot/take_snapshot.h"
#include "store/book/book.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using store::RunRow;
using Definition = schedulepb::Schedule;

constexpr absl::Duration kHookTimeout = absl::Minutes(30);
// Of a drill whose run has no limit: what the guest is told is a number of milliseconds in 32 bits.
constexpr absl::Duration kLongestCheck = absl::Hours(24 * 30);
// A run's message is for people; a program that prints more is cut.
constexpr size_t kLongestMessage = 2000;
// ioprio_set(2): class idle, for this process.
constexpr int kIoprioWhoProcess = 1;
constexpr int kIoprioClassIdle = 3 << 13;
constexpr int kNice = 10;

class RunExecution {
 public:
  RunExecution(const WorkerOptions& options, store::Book& book, RunRow run)
      : options_(options), book_(book), run_(std::move(run)) {}

  absl::Status Execute() {
    absl::Status status = Prepare();
    if (status.ok()) status = Hook(schedule_->definition.before(), "before");
    const bool began = status.ok();
    if (status.ok()) status = Work();
    run_.outcome = status.ok() ? RunOutcome::kSucceeded : RunOutcome::kFailed;
    if (!status.ok()) run_.message = std::string(status.message());
    // It is told of a failure too; its own failure does not undo a good snapshot.
    if (began) {
      if (absl::Status after = Hook(schedule_->definition.after(), "after"); !after.ok()) Note(after.message());
    }
    run_.ended = Clock::Real().Now();
    // It quotes what programs print, and is sent on as text.
    run_.message = CleanText(run_.message, kLongestMessage);
    STILL_RETURN_IF_ERROR(book_.UpdateRun(run_));
    return status;
  }

 private:
  void Note(absl::string_view text) { absl::StrAppend(&run_.message, run_.message.empty() ? "" : "; ", text); }

  absl::Status Prepare() {
    char host[256] = {};
    (void)::gethostname(host, sizeof host - 1);  // Only for people.
    run_.owner = absl::StrCat(host, " ", ::getpid());
    STILL_RETURN_IF_ERROR(book_.UpdateRun(run_));
    STILL_ASSIGN_OR_RETURN(std::vector<store::ScheduleRow> rows, book_.ListSchedules());
    for (const store::ScheduleRow& row : rows) {
      if (row.name != run_.schedule) continue;
      STILL_ASSIGN_OR_RETURN(schedule_, FromRow(row, absl::LocalTimeZone()));
    }
    if (!schedule_.has_value()) return absl::NotFoundError(absl::StrCat("schedule ", run_.schedule, " was removed"));
    const Definition& definition = schedule_->definition;
    if (definition.idle_io()) {
      if (::syscall(SYS_ioprio_set, kIoprioWhoProcess, 0, kIoprioClassIdle) != 0 ||
          ::setpriority(PRIO_PROCESS, 0, kNice) != 0) {
        LogWarning("the run goes on with the usual priority", {{"errno", errno}});
      }
    }
    store::RepositoryOptions repository = options_.repository;
    if (definition.bandwidth() > 0) {
      throttle_.emplace(definition.bandwidth(), Clock::Real());
      slow_.emplace(FileSystem::Real(), *throttle_);
      repository.file_system = &*slow_;
    }
    STILL_ASSIGN_OR_RETURN(repository_, store::Repository::Open(repository));
    return absl::OkStatus();
  }

  absl::Status Hook(const std::string& command, absl::string_view when) {
    if (command.empty()) return absl::OkStatus();
    ProcessOptions options{.argv = {"/bin/sh", "-c", command}};
    options.environment = {
        {"STILL_SCHEDULE", run_.schedule},           {"STILL_KIND", run_.kind},         {"STILL_SESSION", run_.session},
        {"STILL_RUN", absl::StrCat(run_.id)},        {"STILL_SNAPSHOT", run_.snapshot}, {"STILL_MESSAGE", run_.message},
        {"STILL_OUTCOME", OutcomeName(run_.outcome)}};
    absl::StatusOr<CommandOutput> output = RunCommand(std::move(options), kHookTimeout);
    if (!output.ok()) return Annotate(output.status(), absl::StrCat("the command ", when));
    if (output->exit.ok()) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat("the command ", when, ": ", output->exit.ToString(), " ",
                                                      absl::StripAsciiWhitespace(output->stderr_text)));
  }

  absl::Status Work() {
    switch (schedule_->definition.kind()) {
      case Definition::KIND_VERIFY:
        return Verify();
      case Definition::KIND_DRILL:
        return Drill();
      case Definition::KIND_PRUNE:
        return Prune();
      default:
        return Capture();
    }
  }

  absl::StatusOr<snapshot::TakeOptions> OptionsOfCapture();
  absl::StatusOr<manifestpb::Snapshot> Take();
  absl::Status Capture();
  absl::Status Retain();
  absl::StatusOr<manifestpb::Snapshot> NewestSnapshot();
  FindManifest Manifests() {
    return [this](const std::string& id) { return repository_->FindSnapshot(id); };
  }
  session::SessionRegistry sessions() const { return session::SessionRegistry(options_.state); }
  absl::Status Verify();
  absl::Status Drill();
  absl::Status Prune();

  const WorkerOptions& options_;
  store::Book& book_;
  RunRow run_;
  std::optional<Schedule> schedule_;
  std::optional<Throttle> throttle_;       // Of the repository.
  std::optional<Throttle> read_throttle_;  // Of the session's disks.
  std::optional<ThrottledFileSystem> slow_;
  std::unique_ptr<store::Repository> repository_;
};

absl::StatusOr<snapshot::TakeOptions> RunExecution::OptionsOfCapture() {
  const Definition& definition = schedule_->definition;
  static const std::map<std::string, sessionpb::QuiescePolicy> kQuiesce = {{"require", sessionpb::QUIESCE_REQUIRE},
                                                                           {"off", sessionpb::QUIESCE_OFF}};
  static const std::map<std::string, guestpb::HookPolicy> kHooks = {{"warn", guestpb::HOOK_WARN},
                                                                    {"skip", guestpb::HOOK_SKIP}};
  static const std::map<std::string, sessionpb::MemoryPolicy> kMemory = {{"require", sessionpb::MEMORY_REQUIRE},
                                                                         {"stop", sessionpb::MEMORY_STOP}};
  snapshot::TakeOptions options;
  options.labels.insert(definition.labels().begin(), definition.labels().end());
  options.labels[std::string(kScheduleLabel)] = schedule_->name();
  options.memory = !definition.disk_only();
  options.track_memory = definition.track_memory();
  if (auto quiesce = kQuiesce.find(definition.quiesce()); quiesce != kQuiesce.end()) options.quiesce = quiesce->second;
  if (auto hooks = kHooks.find(definition.hooks()); hooks != kHooks.end()) options.hook_policy = hooks->second;
  if (auto memory = kMemory.find(definition.memory()); memory != kMemory.end()) options.memory_policy = memory->second;
  if (!definition.max_pause().empty()) {
    STILL_ASSIGN_OR_RETURN(options.max_pause, ParseDuration(definition.max_pause()));
  }
  if (!definition.freeze_lease().empty()) {
    STILL_ASSIGN_OR_RETURN(options.freeze_lease, ParseDuration(definition.freeze_lease()));
  }
  if (definition.read_bandwidth() > 0) {
    read_throttle_.emplace(definition.read_bandwidth(), Clock::Real());
    options.pace = [this](uint64_t bytes) { read_throttle_->Take(bytes); };
  }
  return options;
}

absl::StatusOr<manifestpb::Snapshot> RunExecution::Take() {
  STILL_ASSIGN_OR_RETURN(snapshot::TakeOptions options, OptionsOfCapture());
  STILL_ASSIGN_OR_RETURN(const session::SessionEntry entry, sessions().Find(run_.session));
  // Only one that was switched off: what has crashed is to be looked at by somebody, and told.
  const bool off = !entry.alive && entry.end.has_value() && session::EndedOnPurpose(*entry.end);
  if (!off || schedule_->when_off != WhenOff::kDisk) {
    return snapshot::TakeSnapshot(sessions(), run_.session, *repository_, options);
  }
  Note("from its disk files: the machine is off");
  return snapshot::TakeSnapshotOfDisks(sessions(), run_.session, *repository_,
                                       {.labels = options.labels, .pace = options.pace});
}

absl::Status RunExecution::Capture() {
  STILL_ASSIGN_OR_RETURN(const manifestpb::Snapshot taken, Take());
  run_.snapshot = taken.id();
  run_.consistency = absl::AsciiStrToLower(manifestpb::Consistency::Level_Name(taken.consistency().level()));
  run_.bytes_read = taken.drain().bytes_read();
  run_.bytes_stored = taken.drain().bytes_stored();
  run_.freeze_us = taken.windows().freeze_us();
  run_.pause_us = taken.windows().pause_us();
  if (const std::string& why = taken.windows().no_memory_reason(); !why.empty()) Note(absl::StrCat("no memory: ", why));
  // Only now that there is a new one; that an old one cannot be dropped does not make it worse.
  if (absl::Status retained = Retain(); !retained.ok()) Note(absl::StrCat("retention: ", retained.message()));
  return absl::OkStatus();
}

absl::Status RunExecution::Retain() {
  if (!schedule_->retention.has_value()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(const auto summaries, repository_->Summaries());
  STILL_ASSIGN_OR_RETURN(snapshot::SnapshotsInUse in_use, snapshot::FindSnapshotsInUse(sessions()));
  STILL_ASSIGN_OR_RETURN(const snapshot::MachineIdentity machine, snapshot::FindMachine(sessions(), run_.session));
  STILL_ASSIGN_OR_RETURN(const std::vector<manifestpb::Snapshot> own, SnapshotsOf(machine, *summaries, Manifests()));
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> dropped,
                         DroppedByRetention(*schedule_, machine, own, in_use, Clock::Real().Now()));
  if (dropped.empty()) return absl::OkStatus();
  LogInfo("snapshots dropped by retention", {{"session", run_.session}, {"count", dropped.size()}});
  return repository_->Forget(dropped);
}

// Each run reads the next slice; their number is what fits into the period, so that then all was read once.
absl::Status RunExecution::Verify() {
  const std::string key = absl::StrCat("verify/", schedule_->name());
  STILL_ASSIGN_OR_RETURN(auto remembered, book_.Remembered());
  uint64_t done = 0;
  if (auto at = remembered.find(key); at != remembered.end() && !absl::SimpleAtoi(at->second, &done)) done = 0;
  const absl::Duration gap = std::max(schedule_->timing.LongestGap(run_.planned), absl::Seconds(1));
  absl::Duration rest;
  const auto slices =
      static_cast<uint32_t>(std::clamp<int64_t>(absl::IDivDuration(schedule_->verify_period, gap, &rest), 1, 100000));
  store::VerifyOptions options;
  options.read_slice = {.index = static_cast<uint32_t>(done % slices), .count = slices};
  STILL_ASSIGN_OR_RETURN(store::VerifyReport report, repository_->Verify(options));
  run_.bytes_read = report.blocks_read * 4096;
  if (!report.ok()) {
    return absl::DataLossError(absl::StrCat(report.problems.size(), " problems, the first: ", report.problems.front(),
                                            "; see `still verify` and `still repair`"));
  }
  Note(absl::StrCat("slice ", done % slices + 1, " of ", slices));
  // A slice that failed is read again next time.
  return book_.Remember(key, absl::StrCat(done + 1));
}

// The newest of this machine: not of another one that is called like it.
absl::StatusOr<manifestpb::Snapshot> RunExecution::NewestSnapshot() {
  STILL_ASSIGN_OR_RETURN(const snapshot::MachineIdentity machine, snapshot::FindMachine(sessions(), run_.session));
  STILL_ASSIGN_OR_RETURN(const auto summaries, repository_->Summaries());
  return NewestSnapshotOf(machine, *summaries, Manifests());
}

absl::Status RunExecution::Drill() {
  STILL_ASSIGN_OR_RETURN(const manifestpb::Snapshot newest, NewestSnapshot());
  run_.snapshot = newest.id();
  ProcessOptions options{.argv = {options_.still_program, "--quiet", "--state", options_.state, "--repo",
                                  options_.repository.path, "drill", newest.id()}};
  if (!options_.repository.credentials.key_file.empty()) {
    options.argv.insert(options.argv.end(), {"--key-file", options_.repository.credentials.key_file});
  }
  OwnedFd secret;
  if (!options_.repository.credentials.passphrase.empty()) {
    STILL_ASSIGN_OR_RETURN(secret, MakeSecretFd(options_.repository.credentials.passphrase));
    options.argv.insert(options.argv.end(), {"--secret-fd", absl::StrCat(secret.get())});
    options.inherited_fds.push_back(secret.get());
  }
  if (schedule_->definition.bandwidth() > 0) {
    options.argv.insert(options.argv.end(), {"--bandwidth", absl::StrCat(schedule_->definition.bandwidth())});
  }
  if (!schedule_->definition.time_limit().empty()) {
    const absl::Duration limit = std::min(schedule_->time_limit, kLongestCheck);
    options.argv.insert(options.argv.end(), {"--timeout", absl::StrCat(absl::ToInt64Seconds(limit), "s")});
  }
  if (!schedule_->definition.check().empty()) {
    options.argv.insert(options.argv.end(), {"--check", schedule_->definition.check()});
  }
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand(std::move(options), schedule_->time_limit));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the drill failed: ", absl::StripAsciiWhitespace(output.stderr_text)));
}

absl::Status RunExecution::Prune() {
  STILL_ASSIGN_OR_RETURN(store::PruneReport report, repository_->Prune({}));
  Note(absl::StrCat(report.packs_deleted, " packs deleted, ", report.bytes_deleted, " bytes"));
  return absl::OkStatus();
}

}  // namespace

absl::Status ExecuteRun(const WorkerOptions& options, int64_t run_id) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Book> book,
                         store::Book::Open({.path = store::BookPath(options.state)}));
  STILL_ASSIGN_OR_RETURN(std::optional<RunRow> run, book->FindRun(run_id));
  if (!run.has_value() || run->outcome != RunOutcome::kRunning) {
    return absl::FailedPreconditionError(absl::StrCat("run ", run_id, " is not open"));
  }
  return RunExecution(options, *book, *std::move(run)).Execute();
}

}  // namespace still::schedule
