#include "guest-agent/freeze_controller.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "guest-agent/freeze_run.h"

namespace still::agent {
namespace {

constexpr size_t kMaxTokenBytes = 64;
constexpr uint32_t kMinLeaseMs = 100;
// A guest that stands still for longer than ten minutes is broken for its users whatever the host is doing.
constexpr uint32_t kMaxLeaseMs = 600000;
// Of write-back and hooks, each.
constexpr uint32_t kMaxPreparationMs = 600000;
constexpr size_t kRememberedTokens = 64;
constexpr absl::Duration kThawRetry = absl::Seconds(1);

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

// Whoever may thaw chose it; it goes into logs and reports.
std::string Requester(absl::string_view text) {
  std::string name(text.substr(0, kMaxTokenBytes));
  for (char& c : name) {
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) c = '?';
  }
  return name;
}

}  // namespace

FreezeController::FreezeController(Parts parts) : parts_(std::move(parts)), thaw_hooks_(parts_.hooks) {
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
  last_token_ = request.token();
  state_ = pb::FREEZING;
  return absl::OkStatus();
}

absl::StatusOr<pb::QuiesceResponse> FreezeController::Quiesce(const pb::QuiesceRequest& request,
                                                              absl::string_view connection) {
  STILL_RETURN_IF_ERROR(ValidateToken(request.token()));
  STILL_RETURN_IF_ERROR(ValidateLease(request.lease_ms()));
  for (uint32_t limit_ms : {request.hook_timeout_ms(), request.hooks_timeout_ms(), request.presync_timeout_ms()}) {
    if (limit_ms > kMaxPreparationMs) return absl::InvalidArgumentError("quiesce: a time limit is too long");
  }
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

void FreezeController::OnTimer() {
  absl::MutexLock lock(&mutex_);
  if (run_ == nullptr || run_->deadline == absl::InfiniteDuration()) return;
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
  if (run.thaw_started == absl::ZeroDuration()) {
    run.thaw_started = parts_.clock.Monotonic();
    run.thaw.set_thaw_began_ns(NowNs());
  }
  ++run.unwinders;
  std::vector<FrozenFileSystem> held = std::exchange(run.held, {});
  const std::vector<Watched> watched = std::exchange(run.watched, {});
  mutex_.Unlock();
  // While nobody can write because of us: what was written was written before.
  std::vector<std::string> written = WrittenSince(watched);
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
  for (std::string& name : written) run.thaw.add_written(std::move(name));
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
  mutex_.Lock();
  if (run.run_thaw_hooks && !run.hooks_run.empty()) {
    run.thaw.set_hooks_pending(static_cast<uint32_t>(run.hooks_run.size()));
    thaw_hooks_.Start(run.token, std::move(run.hooks_run), run.hook_timeout);
  }
  LogInfo("thawed", {{"token", run.token},
                     {"cause", CauseName(run.cause)},
                     {"requester", run.thaw.requester()},
                     {"file_systems", run.thaw.thawed()}});
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
  if (run_->freezing_begun) {
    run_->deadline = parts_.clock.Monotonic() + run_->lease;
    parts_.timer.Arm(run_->deadline);
  }
  pb::RenewQuiesceResponse response;
  response.set_boottime_ns(NowNs());
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
      if (run_->cause == pb::THAW_CAUSE_UNSPECIFIED) {
        run_->thaw.set_by_token(!token.empty());
        run_->thaw.set_requester(Requester(request.requester()));
      }
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
    response.set_remaining_ms(
        MillisecondsLeft(run_->freezing_begun ? run_->deadline - parts_.clock.Monotonic() : run_->lease));
    for (const FrozenFileSystem& fs : run_->held) *response.add_frozen() = fs.mount;
  }
  response.set_last_thaw_cause(last_thaw_.cause());
  response.set_last_thawed_at_ns(last_thaw_.thawed_at_ns());
  thaw_hooks_.Describe(response);
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
