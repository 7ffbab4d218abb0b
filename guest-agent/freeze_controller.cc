#include "guest-agent/freeze_controller.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace still::agent {
namespace {

constexpr size_t kMaxTokenBytes = 64;
constexpr uint32_t kMinLeaseMs = 100;
// A guest that stands still for longer than ten minutes is broken for its users whatever the host is doing.
constexpr uint32_t kMaxLeaseMs = 600000;
constexpr uint32_t kDefaultHookTimeoutMs = 10000;
constexpr uint32_t kMaxHookTimeoutMs = 600000;
constexpr size_t kRememberedTokens = 64;
constexpr absl::Duration kThawRetry = absl::Seconds(1);

uint64_t Microseconds(absl::Duration duration) { return static_cast<uint64_t>(absl::ToInt64Microseconds(duration)); }

uint32_t MillisecondsLeft(absl::Duration left) {
  return static_cast<uint32_t>(std::max<int64_t>(0, absl::ToInt64Milliseconds(left)));
}

absl::Status ValidateToken(const std::string& token) {
  if (token.empty() || token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat("quiesce: the token must have 1 to ", kMaxTokenBytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status ValidateLease(uint32_t lease_ms) {
  if (lease_ms < kMinLeaseMs || lease_ms > kMaxLeaseMs) {
    return absl::InvalidArgumentError(
        absl::StrCat("quiesce: a lease of ", lease_ms, " ms is not within ", kMinLeaseMs, " and ", kMaxLeaseMs));
  }
  return absl::OkStatus();
}

std::string CauseName(pb::ThawCause cause) { return pb::ThawCause_Name(cause); }

void AddSkipped(const FrozenFileSystem& fs, pb::SkippedMount::Reason reason, pb::QuiesceResponse& response) {
  pb::SkippedMount& skipped = *response.add_skipped();
  skipped.set_mount_point(fs.mount.mount_point());
  skipped.set_fs_type(fs.mount.fs_type());
  skipped.set_reason(reason);
}

}  // namespace

// One freeze from Begin to Finish. Guarded by mutex_, except what is const or atomic.
struct FreezeController::Run {
  Run(const pb::QuiesceRequest& request, absl::string_view connection)
      : token(request.token()),
        connection(connection),
        hook_policy(request.hook_policy() == pb::HOOK_POLICY_UNSPECIFIED ? pb::HOOK_FAIL : request.hook_policy()),
        hook_timeout(
            absl::Milliseconds(request.hook_timeout_ms() == 0 ? kDefaultHookTimeoutMs : request.hook_timeout_ms())) {}
  const std::string token;
  const std::string connection;
  const pb::HookPolicy hook_policy;
  const absl::Duration hook_timeout;

  absl::Duration lease;
  absl::Duration deadline;
  bool confirmed = false;       // The host has shown that it knows of this freeze.
  bool worker_active = true;    // Quiesce is still under way.
  bool freezing_begun = false;  // Before that there is nothing to thaw, and the worker notices a cancel soon by itself.
  std::atomic<bool> run_thaw_hooks = true;  // A Thaw may say so while the lease's end unwinds already.
  int unwinders = 0;
  pb::ThawCause cause = pb::THAW_CAUSE_UNSPECIFIED;
  std::atomic<bool> cancelled_flag = false;  // cause is set; for the hook that is running.
  std::vector<FrozenFileSystem> held;        // In freezing order.
  std::vector<std::string> hooks_run;        // In freezing order; their thaw is owed.
  pb::QuiesceResponse response;
  pb::ThawResponse thaw;
  absl::Duration thaw_started;
};

FreezeController::FreezeController(Parts parts) : parts_(std::move(parts)) {
  last_thaw_.set_cause(pb::NOT_FROZEN);
  parts_.timer.OnFire([this] { OnTimer(); });
}

FreezeController::~FreezeController() {
  ThawBeforeExit();
  parts_.timer.Disarm();
}

uint64_t FreezeController::NowNs() const {
  return static_cast<uint64_t>(absl::ToInt64Nanoseconds(parts_.clock.Monotonic()));
}

absl::Status FreezeController::Begin(const pb::QuiesceRequest& request, absl::string_view connection) {
  if (run_ != nullptr) {
    return absl::FailedPreconditionError(request.token() == run_->token
                                             ? "quiesce: this freeze is still beginning or ending"
                                             : "quiesce: another freeze is in force");
  }
  if (const pb::ThawResponse* past = PastThaw(request.token())) {
    return absl::FailedPreconditionError(
        absl::StrCat("quiesce: the freeze of this token is over: ", CauseName(past->cause())));
  }
  run_ = std::make_unique<Run>(request, connection);
  run_->lease = absl::Milliseconds(request.lease_ms());
  run_->deadline = parts_.clock.Monotonic() + run_->lease;
  last_token_ = request.token();
  state_ = pb::FREEZING;
  parts_.timer.Arm(run_->deadline);
  return absl::OkStatus();
}

absl::StatusOr<pb::QuiesceResponse> FreezeController::Quiesce(const pb::QuiesceRequest& request,
                                                              absl::string_view connection) {
  STILL_RETURN_IF_ERROR(ValidateToken(request.token()));
  STILL_RETURN_IF_ERROR(ValidateLease(request.lease_ms()));
  if (request.hook_timeout_ms() > kMaxHookTimeoutMs)
    return absl::InvalidArgumentError("quiesce: hook timeout too long");
  Run* run;
  {
    absl::MutexLock lock(&mutex_);
    if (state_ == pb::FROZEN && run_->token == request.token()) return run_->response;
    STILL_RETURN_IF_ERROR(Begin(request, connection));
    run = run_.get();
  }
  absl::Status status = FreezeAll(*run, request);
  absl::MutexLock lock(&mutex_);
  run->worker_active = false;
  if (status.ok() && run->cause == pb::THAW_CAUSE_UNSPECIFIED) {
    run->response.set_frozen_at_ns(NowNs());
    state_ = pb::FROZEN;
    LogInfo("frozen", {{"token", run->token}, {"file_systems", run->held.size()}});
    return run->response;
  }
  if (status.ok()) {
    status = absl::AbortedError(absl::StrCat("quiesce: given up: ", CauseName(run->cause)));
  } else if (run->cause == pb::THAW_CAUSE_UNSPECIFIED) {
    run->cause = pb::FREEZE_FAILED;
  }
  LogWarning("freeze failed", {{"token", run->token}, {"error", status.ToString()}});
  Unwind(*run);  // `run` may be gone after it.
  return FirstError(status, WaitUntilOver(request.token()).status());
}

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
  std::vector<FrozenFileSystem> opened = OpenPlanned(parts_.freezer, plan, run.response);
  return FreezeOpened(std::move(opened), run);
}

absl::Status FreezeController::SyncAll(const std::vector<FrozenFileSystem>& opened, Run& run) {
  absl::Duration start = parts_.clock.Monotonic();
  for (const FrozenFileSystem& fs : opened) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    // The freeze syncs again, and what fails here fails there with more reason.
    if (absl::Status status = fs.handle->Sync(); !status.ok()) {
      LogWarning("cannot sync before the freeze", {{"mount", fs.mount.mount_point()}, {"error", status.ToString()}});
    }
  }
  run.response.set_presync_us(Microseconds(parts_.clock.Monotonic() - start));
  return absl::OkStatus();
}

absl::Status FreezeController::RunFreezeHooks(Run& run) {
  if (run.hook_policy == pb::HOOK_SKIP) return absl::OkStatus();
  absl::Duration start = parts_.clock.Monotonic();
  for (const std::string& path : parts_.hooks.List()) {
    STILL_RETURN_IF_ERROR(CheckCancelled(run));
    {
      // Before it runs: a hook that fails half-way is thawed as well.
      absl::MutexLock lock(&mutex_);
      run.hooks_run.push_back(path);
    }
    pb::HookResult result =
        parts_.hooks.Run(path, "freeze", run.hook_timeout, [&run] { return run.cancelled_flag.load(); });
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

absl::Status FreezeController::FreezeOpened(std::vector<FrozenFileSystem> opened, Run& run) {
  MarkedFreeze marked{run.token, {}};
  for (const FrozenFileSystem& fs : opened) marked.mounts.push_back(fs.reached);
  STILL_RETURN_IF_ERROR(Annotate(parts_.marker.Write(marked), "freeze marker"));
  parts_.set_quiet(true);
  {
    absl::MutexLock lock(&mutex_);
    run.freezing_begun = true;
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
      continue;
    }
    if (error != 0) return ErrnoStatus(error, absl::StrCat("freeze ", fs.mount.mount_point()));
    fs.mount.set_freeze_us(Microseconds(parts_.clock.Monotonic() - one));
    *run.response.add_frozen() = fs.mount;
    absl::MutexLock lock(&mutex_);
    run.held.push_back(std::move(fs));
  }
  run.response.set_freeze_us(Microseconds(parts_.clock.Monotonic() - start));
  return absl::OkStatus();
}

void FreezeController::OnTimer() {
  absl::MutexLock lock(&mutex_);
  if (run_ == nullptr) return;
  if (parts_.clock.Monotonic() < run_->deadline) {
    parts_.timer.Arm(run_->deadline);  // Renewed while the timer was firing.
    return;
  }
  if (run_->cause == pb::THAW_CAUSE_UNSPECIFIED) LogWarning("freeze lease expired", {{"token", run_->token}});
  Cancel(*run_, pb::LEASE_EXPIRED);
}

void FreezeController::Cancel(Run& run, pb::ThawCause cause) {
  if (run.cause == pb::THAW_CAUSE_UNSPECIFIED) run.cause = cause;
  run.cancelled_flag = true;
  // Before the first FIFREEZE the worker sees the flag within milliseconds and unwinds hooks in their order.
  if (run.worker_active && !run.freezing_begun) return;
  Unwind(run);
}

void FreezeController::Unwind(Run& run) {
  if (run.held.empty() && run.unwinders > 0) return;  // Another thread is about to finish it.
  state_ = pb::THAWING;
  if (run.thaw_started == absl::ZeroDuration()) run.thaw_started = parts_.clock.Monotonic();
  ++run.unwinders;
  std::vector<FrozenFileSystem> held = std::exchange(run.held, {});
  mutex_.Unlock();
  std::vector<FrozenFileSystem> still_held;
  std::vector<std::string> early;
  uint32_t thawed = 0;
  for (auto fs = held.rbegin(); fs != held.rend(); ++fs) {
    ThawOutcome outcome = ThawCompletely(*fs->handle);
    if (outcome.error != 0) {
      LogError("cannot thaw, trying again",
               {{"mount", fs->mount.mount_point()}, {"error", std::strerror(outcome.error)}});
      still_held.insert(still_held.begin(), std::move(*fs));
    } else if (outcome.thaws == 0) {
      early.push_back(fs->mount.mount_point());
    } else {
      ++thawed;
    }
  }
  mutex_.Lock();
  std::move(still_held.begin(), still_held.end(), std::back_inserter(run.held));
  for (std::string& mount_point : early) run.thaw.add_thawed_early(std::move(mount_point));
  run.thaw.set_thawed(run.thaw.thawed() + thawed);
  if (--run.unwinders > 0 || run.worker_active) return;
  if (run.held.empty()) {
    Finish(run);
  } else {
    run.deadline = parts_.clock.Monotonic() + kThawRetry;
    parts_.timer.Arm(run.deadline);
  }
}

void FreezeController::Finish(Run& run) {
  run.thaw.set_cause(run.cause);
  run.thaw.set_thawed_at_ns(NowNs());
  run.thaw.set_thaw_us(Microseconds(parts_.clock.Monotonic() - run.thaw_started));
  ++run.unwinders;  // Nobody else may finish it while the lock is released.
  mutex_.Unlock();
  parts_.timer.Disarm();
  if (absl::Status status = parts_.marker.Remove(); !status.ok()) {
    LogError("cannot remove the freeze marker", {{"error", status.ToString()}});
  }
  parts_.set_quiet(false);
  std::vector<pb::HookResult> results;
  for (auto path = run.hooks_run.rbegin(); run.run_thaw_hooks && path != run.hooks_run.rend(); ++path) {
    results.push_back(parts_.hooks.Run(*path, "thaw", run.hook_timeout, [] { return false; }));
    if (results.back().exit_code() == 0) continue;
    LogWarning("thaw hook failed", {{"hook", *path}, {"exit", results.back().exit_code()}});
  }
  mutex_.Lock();
  for (pb::HookResult& result : results) *run.thaw.add_hooks() = std::move(result);
  LogInfo("thawed", {{"token", run.token}, {"cause", CauseName(run.cause)}, {"file_systems", run.thaw.thawed()}});
  last_thaw_ = run.thaw;
  Remember(run.token, std::move(run.thaw));
  run_.reset();
  state_ = pb::THAWED;
}

void FreezeController::Remember(const std::string& token, pb::ThawResponse thaw) {
  past_.emplace_back(token, std::move(thaw));
  if (past_.size() > kRememberedTokens) past_.pop_front();
}

const pb::ThawResponse* FreezeController::PastThaw(absl::string_view token) const {
  for (const auto& [past_token, thaw] : past_) {
    if (past_token == token) return &thaw;
  }
  return nullptr;
}

absl::StatusOr<pb::RenewQuiesceResponse> FreezeController::Renew(const pb::RenewQuiesceRequest& request) {
  if (request.lease_ms() != 0) STILL_RETURN_IF_ERROR(ValidateLease(request.lease_ms()));
  absl::MutexLock lock(&mutex_);
  bool in_force = run_ != nullptr && run_->token == request.token() && run_->cause == pb::THAW_CAUSE_UNSPECIFIED;
  if (!in_force || parts_.clock.Monotonic() >= run_->deadline) {
    const pb::ThawResponse* past = PastThaw(request.token());
    return absl::FailedPreconditionError(absl::StrCat(
        "renew: this freeze is not in force", past != nullptr ? absl::StrCat(": ", CauseName(past->cause())) : ""));
  }
  run_->confirmed = state_ == pb::FROZEN;
  if (request.lease_ms() != 0) run_->lease = absl::Milliseconds(request.lease_ms());
  run_->deadline = parts_.clock.Monotonic() + run_->lease;
  parts_.timer.Arm(run_->deadline);
  pb::RenewQuiesceResponse response;
  response.set_remaining_ms(MillisecondsLeft(run_->lease));
  return response;
}

absl::StatusOr<pb::ThawResponse> FreezeController::Thaw(const pb::ThawRequest& request) {
  const std::string& token = request.token();
  if (token.size() > kMaxTokenBytes) return absl::InvalidArgumentError("thaw: the token is too long");
  if (request.foreign_too() && !token.empty()) {
    return absl::InvalidArgumentError("thaw: foreign_too goes with an empty token");
  }
  absl::StatusOr<pb::ThawResponse> response;
  {
    absl::MutexLock lock(&mutex_);
    if (run_ != nullptr && (token.empty() || token == run_->token)) {
      run_->run_thaw_hooks = request.hook_policy() != pb::HOOK_SKIP;
      const std::string in_force = run_->token;
      Cancel(*run_, pb::REQUESTED);
      response = WaitUntilOver(in_force);
    } else if (const pb::ThawResponse* past = token.empty() ? nullptr : PastThaw(token)) {
      return *past;
    } else if (run_ != nullptr) {
      return absl::FailedPreconditionError("thaw: a freeze with another token is in force");
    } else {
      response = last_thaw_;
      if (!token.empty()) {
        // Its Quiesce may still be on the way: it must find this.
        response->Clear();
        response->set_cause(pb::NOT_FROZEN);
        Remember(token, *response);
      }
    }
  }
  if (response.ok() && request.foreign_too()) STILL_RETURN_IF_ERROR(ThawForeignFreezes(parts_.freezer, *response));
  return response;
}

absl::StatusOr<pb::ThawResponse> FreezeController::WaitUntilOver(const std::string& token) {
  auto over = [this, &token]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return PastThaw(token) != nullptr; };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&over), parts_.thaw_patience)) {
    return absl::UnavailableError("thaw: a file system is not thawed yet; the agent goes on trying");
  }
  return *PastThaw(token);
}

pb::QuiesceStatusResponse FreezeController::Status() {
  absl::MutexLock lock(&mutex_);
  pb::QuiesceStatusResponse response;
  response.set_state(state_);
  response.set_token(last_token_);
  if (run_ != nullptr) {
    response.set_remaining_ms(MillisecondsLeft(run_->deadline - parts_.clock.Monotonic()));
    for (const FrozenFileSystem& fs : run_->held) *response.add_frozen() = fs.mount;
  }
  response.set_last_thaw_cause(last_thaw_.cause());
  response.set_last_thawed_at_ns(last_thaw_.thawed_at_ns());
  return response;
}

void FreezeController::Abandon(const std::string& token) {
  absl::MutexLock lock(&mutex_);
  if (run_ == nullptr || run_->token != token || !run_->worker_active) return;
  Cancel(*run_, pb::CLIENT_LOST);
}

void FreezeController::ConnectionLost(absl::string_view connection) {
  absl::MutexLock lock(&mutex_);
  if (run_ == nullptr || run_->connection != connection || run_->confirmed) return;
  LogWarning("connection lost during a freeze", {{"token", run_->token}});
  Cancel(*run_, pb::CLIENT_LOST);
}

void FreezeController::ThawBeforeExit() {
  absl::MutexLock lock(&mutex_);
  if (run_ == nullptr) return;
  const std::string token = run_->token;
  Cancel(*run_, pb::AGENT_STOPPED);
  if (absl::Status status = WaitUntilOver(token).status(); !status.ok()) {
    LogError("stopping while frozen", {{"error", status.ToString()}});
  }
}

void FreezeController::Recovered(const RecoveredFreeze& recovered) {
  absl::MutexLock lock(&mutex_);
  last_token_ = recovered.token;
  last_thaw_ = recovered.thaw;
  Remember(recovered.token, recovered.thaw);
}

bool FreezeController::gated() {
  absl::MutexLock lock(&mutex_);
  return state_ != pb::THAWED;
}

}  // namespace still::agent
