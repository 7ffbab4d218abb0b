#include "session/hypervisor/qemu/qemu_process.h"

#include <signal.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/child_watch.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "session/hypervisor/bounded_log.h"

namespace still::session {
namespace {

constexpr size_t kStderrTailBytes = 4096;

}  // namespace

absl::StatusOr<std::unique_ptr<QemuProcess>> QemuProcess::Start(Options options) {
  STILL_ASSIGN_OR_RETURN(Waker wake, Waker::Create());
  std::unique_ptr<QemuProcess> process(new QemuProcess(std::move(wake)));
  process->keeper_ =
      std::thread([raw = process.get(), options = std::move(options)]() mutable { raw->Keep(std::move(options)); });
  absl::MutexLock lock(&process->mutex_);
  process->mutex_.Await(absl::Condition(&process->started_.done));
  if (!process->started_.status.ok()) return process->started_.status;
  return process;
}

QemuProcess::~QemuProcess() {
  KillAfter(absl::ZeroDuration());
  if (keeper_.joinable()) keeper_.join();
}

void QemuProcess::KillAfter(absl::Duration grace) {
  {
    absl::MutexLock lock(&mutex_);
    kill_at_ = std::min(kill_at_, Clock::Real().Monotonic() + grace);
  }
  wake_.Wake();
}

absl::StatusOr<ProcessExit> QemuProcess::Wait(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  if (!mutex_.AwaitWithTimeout(absl::Condition(&exited_), timeout)) {
    return absl::DeadlineExceededError(absl::StrCat("process ", pid_, " still runs"));
  }
  return exit_;
}

std::string QemuProcess::stderr_tail() const {
  absl::MutexLock lock(&mutex_);
  return stderr_tail_;
}

void QemuProcess::Keep(Options options) {
  Pipe said;
  std::optional<ChildProcess> child;
  auto start = [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(said, MakePipe());
    STILL_RETURN_IF_ERROR(SetNonBlocking(said.read_end.get()));
    STILL_RETURN_IF_ERROR(SetNonBlocking(options.console.get()));
    options.process.stdin_fd = -1;
    options.process.stdout_fd = -1;
    options.process.stderr_fd = said.write_end.get();
    options.process.end_with_parent = true;
    STILL_ASSIGN_OR_RETURN(child, ChildProcess::Start(options.process));
    said.write_end.Reset();
    return absl::OkStatus();
  };
  absl::Status status = start();
  if (status.ok()) pid_ = child->pid();
  {
    absl::MutexLock lock(&mutex_);
    started_ = {.done = true, .status = status};
  }
  if (!status.ok()) return;
  ProcessExit exit = KeepUntilExit(*child, options, said.read_end.get());
  absl::MutexLock lock(&mutex_);
  exit_ = exit;
  exited_ = true;
}

ProcessExit QemuProcess::KeepUntilExit(ChildProcess& child, Options& options, int stderr_fd) {
  auto console_log = BoundedLog::Create(options.console_log);
  auto stderr_log = BoundedLog::Create(options.stderr_log);
  for (const auto* log : {&console_log, &stderr_log}) {
    if (!log->ok()) LogWarning("no log of the hypervisor", {{"error", log->status().ToString()}});
  }
  auto to_console = [&](absl::string_view text) {
    if (console_log.ok()) console_log->Append(text);
    return true;
  };
  auto to_stderr = [&](absl::string_view text) {
    if (stderr_log.ok()) stderr_log->Append(text);
    absl::MutexLock lock(&mutex_);
    stderr_tail_.append(text.data(), text.size());
    if (stderr_tail_.size() > kStderrTailBytes) stderr_tail_.erase(0, stderr_tail_.size() - kStderrTailBytes);
    return true;
  };
  auto kill_at = [this] {
    absl::MutexLock lock(&mutex_);
    return kill_at_;
  };
  absl::StatusOr<WatchedEnd> end = WatchChild(
      child,
      {.streams = {{stderr_fd, to_stderr}, {options.console.get(), to_console}}, .kill_at = kill_at, .waker = &wake_});
  if (end.ok()) return end->exit;
  LogError("the hypervisor does not end", {{"error", end.status().ToString()}});
  return {.signal = SIGKILL};
}

}  // namespace still::session
