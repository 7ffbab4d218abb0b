#include "session/hypervisor/qemu/qemu_migration.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr char kMigrationFd[] = "still-memory";
// How often a wait looks for progress and for whoever ends it.
constexpr absl::Duration kMigrationTick = absl::Milliseconds(50);
// How often QEMU is asked, inside the pause, whether the memory is write-protected.
constexpr absl::Duration kProtectionTick = absl::Milliseconds(1);

}  // namespace

QemuMigration::QemuMigration(QemuMachine& machine, PauseBudget& budget, std::vector<std::string>& commands)
    : machine_(machine),
      budget_(budget),
      commands_(commands),
      events_(machine.qmp->Subscribe({"STOP", "RESUME", "MIGRATION"})) {}

absl::Status QemuMigration::Pass(int fd) {
  STILL_RETURN_IF_ERROR(machine_.qmp->RunWithFd("getfd", {{"fdname", kMigrationFd}}, fd, machine_.command_deadline));
  passed_ = true;
  return absl::OkStatus();
}

void QemuMigration::NotePause() {
  stopped_at_ = absl::Now();
  resets_at_pause_ = machine_.guest->resets;
  Drain();
  resumed_at_ = absl::InfinitePast();  // What resumed the VM until now did so before this pause.
}

// Capabilities, parameters and the descriptor are set.
absl::Status QemuMigration::Start() {
  // A reset that the guest asked for right before the pause is done inside of it, and leaves a run state from which QEMU
  // 7.2 aborts when a snapshot is begun (runstate_set: "prelaunch" to "paused").
  if (machine_.guest->resets != resets_at_pause_) {
    return absl::UnavailableError("the guest was reset in the moment of its pause; try again");
  }
  commands_.push_back("migrate");
  absl::StatusOr<absl::Duration> left = budget_.Left();
  if (!left.ok()) return budget_.Explain(left.status());
  state_ = State::kStarting;
  passed_ = false;  // The migration owns it now, and closes it in any case.
  absl::Status started = machine_.qmp->Run("migrate", {{"uri", absl::StrCat("fd:", kMigrationFd)}}, *left);
  return budget_.Explain(Annotate(started, "save the memory"));
}

// Until QEMU 8.2 a background snapshot resumes the VM by itself once all memory is write-protected; since 9.0 a VM that was
// stopped before stays stopped, and no event says that the protection stands. So QEMU is asked, and told to go on.
absl::Status QemuMigration::AwaitWriteProtection() {
  bool protecting = false;  // Nothing is asked before the migration's own thread has begun.
  while (resumed_at_ == absl::InfinitePast()) {
    absl::StatusOr<absl::Duration> left = budget_.Left();
    absl::Status next = left.ok() ? NextEvent(protecting ? std::min(kProtectionTick, *left) : *left) : left.status();
    const bool silent = left.ok() && absl::IsDeadlineExceeded(next);
    if (!next.ok() && !(silent && protecting)) return budget_.Explain(Annotate(next, "write-protect the memory"));
    if (state_ == State::kFailed) return Annotate(Error(), "write-protect the memory");
    protecting = protecting || state_ != State::kStarting;
    if (silent) {
      STILL_RETURN_IF_ERROR(budget_.Explain(Annotate(ContinueIfProtected(), "write-protect the memory")));
    }
  }
  return absl::OkStatus();
}

// The first page is written after the protection, never before it. QEMU's bottom half that restores the run state was
// scheduled before that page, so it has run when the next command, query-status, is answered: a "cont" that it met would
// leave the vcpus running in a VM that says it is paused.
absl::Status QemuMigration::ContinueIfProtected() {
  commands_.push_back("query-migrate");
  STILL_ASSIGN_OR_RETURN(absl::Duration left, budget_.Left());
  STILL_ASSIGN_OR_RETURN(json state, machine_.qmp->Execute("query-migrate", json::object(), left));
  const json& ram = Member(state, "ram");
  const bool pages = NumberAt(ram, "normal") > 0 || NumberAt(ram, "duplicate") > 0;
  if (!pages) return absl::OkStatus();
  commands_.push_back("query-status");
  STILL_ASSIGN_OR_RETURN(left, budget_.Left());
  STILL_ASSIGN_OR_RETURN(bool paused, QueryPaused(*machine_.qmp, left));
  if (!paused) return absl::OkStatus();  // It went on by itself: RESUME is on its way.
  commands_.push_back("cont");
  STILL_ASSIGN_OR_RETURN(left, budget_.Left());
  return ResumeVcpus(*machine_.qmp, left);
}

void QemuMigration::Note(const QmpEvent& event) {
  if (event.name == "STOP") {
    stopped_at_ = event.time;
  } else if (event.name == "RESUME") {
    resumed_at_ = event.time;
  } else {
    std::string status = TextAt(event.data, "status");
    if (status == "active") state_ = State::kActive;
    if (status == "completed") state_ = State::kCompleted;
    if (status == "failed" || status == "cancelled") state_ = State::kFailed;
  }
}

absl::Status QemuMigration::NextEvent(absl::Duration timeout) {
  STILL_ASSIGN_OR_RETURN(QmpEvent event, events_.Next(timeout));
  Note(event);
  return absl::OkStatus();
}

void QemuMigration::Drain() {
  while (NextEvent(absl::ZeroDuration()).ok()) {
  }
}

absl::Status QemuMigration::AwaitCompletion(const Wait& wait) {
  absl::Duration moved_at = Clock::Real().Monotonic();
  uint64_t moved = 0;
  while (running()) {
    STILL_RETURN_IF_ERROR(wait.check());
    const absl::Duration now = Clock::Real().Monotonic();
    if (std::exchange(moved, wait.progress()) != moved) moved_at = now;
    if (now - moved_at >= wait.silence_limit) {
      wait.on_silence();
      return absl::DeadlineExceededError(
          absl::StrCat("the hypervisor wrote no memory for ", absl::FormatDuration(wait.silence_limit)));
    }
    absl::Status next = NextEvent(std::min(kMigrationTick, wait.silence_limit));
    if (!next.ok() && !absl::IsDeadlineExceeded(next)) return next;
  }
  return state_ == State::kCompleted ? absl::OkStatus() : FirstError(wait.check(), Error());
}

absl::Status QemuMigration::AwaitEnd(const std::function<uint64_t()>& progress) {
  absl::Duration deadline = Clock::Real().Monotonic() + machine_.command_deadline;
  uint64_t moved = 0;
  while (running()) {
    if (std::exchange(moved, progress()) != moved) deadline = Clock::Real().Monotonic() + machine_.command_deadline;
    absl::Status next = NextEvent(kMigrationTick);
    if (next.ok()) continue;
    if (!absl::IsDeadlineExceeded(next) || Clock::Real().Monotonic() > deadline) {
      return Annotate(next, "end the memory stream");
    }
  }
  return absl::OkStatus();
}

absl::Status QemuMigration::Release() {
  if (!std::exchange(passed_, false)) return absl::OkStatus();
  return machine_.qmp->Run("closefd", {{"fdname", kMigrationFd}}, machine_.command_deadline);
}

absl::Time QemuMigration::resumed_at() {
  if (resumed_at_ == absl::InfinitePast()) resumed_at_ = absl::Now();
  return resumed_at_;
}

absl::Status QemuMigration::Error() {
  auto answer = machine_.qmp->Execute("query-migrate", json::object(), machine_.command_deadline);
  if (!answer.ok()) return answer.status();
  std::string reason = TextAt(*answer, "error-desc");
  if (reason.empty()) reason = TextAt(*answer, "status");
  return absl::AbortedError(absl::StrCat("the hypervisor gave the memory stream up: ", reason));
}

}  // namespace still::session
