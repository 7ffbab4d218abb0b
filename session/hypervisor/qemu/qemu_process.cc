#include "session/hypervisor/qemu/qemu_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/nonblocking.h"
#include "session/hypervisor/bounded_log.h"

namespace still::session {
namespace {

constexpr size_t kStderrTailBytes = 4096;
constexpr int kMaxReadsInARow = 64;  // A guest that floods its console must not keep us from reaping or killing.
constexpr absl::Duration kNever = absl::Hours(1);  // poll(2) takes an int; waking once an hour costs nothing.

// Moves what is there to read now into `sink`. False at the end of the stream or on an error.
template <typename Sink>
bool Drain(int fd, const Sink& sink) {
  char buffer[16384];
  for (int turns = 0; turns < kMaxReadsInARow; ++turns) {
    ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    sink(absl::string_view(buffer, static_cast<size_t>(got)));
    if (static_cast<size_t>(got) < sizeof buffer) return true;
  }
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<QemuProcess>> QemuProcess::Start(Options options) {
  std::unique_ptr<QemuProcess> process(new QemuProcess);
  process->wake_ = OwnedFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!process->wake_.valid()) return ErrnoStatus(errno, "eventfd");
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
  uint64_t one = 1;
  // It can only fail when the counter is full, and then the keeper is awake anyway.
  [[maybe_unused]] ssize_t written = ::write(wake_.get(), &one, sizeof one);
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
  OwnedFd stderr_read;
  std::optional<ChildProcess> child;
  auto start = [&]() -> absl::Status {
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
    stderr_read = OwnedFd(fds[0]);
    OwnedFd stderr_write(fds[1]);
    STILL_RETURN_IF_ERROR(SetNonBlocking(stderr_read.get()));
    STILL_RETURN_IF_ERROR(SetNonBlocking(options.console.get()));
    options.process.stdin_fd = -1;
    options.process.stdout_fd = -1;
    options.process.stderr_fd = stderr_write.get();
    options.process.end_with_parent = true;
    STILL_ASSIGN_OR_RETURN(child, ChildProcess::Start(options.process));
    return absl::OkStatus();
  };
  absl::Status status = start();
  if (status.ok()) pid_ = child->pid();
  {
    absl::MutexLock lock(&mutex_);
    started_ = {.done = true, .status = status};
  }
  if (!status.ok()) return;
  KeepUntilExit(*child, options, stderr_read.get());
  auto exit = child->Wait(absl::ZeroDuration());
  absl::MutexLock lock(&mutex_);
  if (exit.ok()) exit_ = *exit;
  exited_ = true;
}

void QemuProcess::KeepUntilExit(ChildProcess& child, Options& options, int stderr_fd) {
  auto console_log = BoundedLog::Create(options.console_log);
  auto stderr_log = BoundedLog::Create(options.stderr_log);
  for (const auto* log : {&console_log, &stderr_log}) {
    if (!log->ok()) LogWarning("no log of the hypervisor", {{"error", log->status().ToString()}});
  }
  auto to_console = [&](absl::string_view text) {
    if (console_log.ok()) console_log->Append(text);
  };
  auto to_stderr = [&](absl::string_view text) {
    if (stderr_log.ok()) stderr_log->Append(text);
    absl::MutexLock lock(&mutex_);
    stderr_tail_.append(text.data(), text.size());
    if (stderr_tail_.size() > kStderrTailBytes) stderr_tail_.erase(0, stderr_tail_.size() - kStderrTailBytes);
  };
  enum { kExit, kWake, kStderr, kConsole, kCount };
  pollfd fds[kCount] = {
      {child.pidfd(), POLLIN, 0}, {wake_.get(), POLLIN, 0}, {stderr_fd, POLLIN, 0}, {options.console.get(), POLLIN, 0}};
  while ((fds[kExit].revents & POLLIN) == 0) {
    absl::Duration wait = KillIfDue(child);
    int ready = ::poll(fds, kCount, static_cast<int>(absl::ToInt64Milliseconds(wait)) + 1);
    if (ready < 0) continue;
    if (fds[kWake].revents != 0) {
      uint64_t count;
      [[maybe_unused]] ssize_t got = ::read(wake_.get(), &count, sizeof count);
    }
    if (fds[kStderr].revents != 0 && !Drain(stderr_fd, to_stderr)) fds[kStderr].fd = -1;
    if (fds[kConsole].revents != 0 && !Drain(options.console.get(), to_console)) fds[kConsole].fd = -1;
  }
  // What it said last.
  Drain(stderr_fd, to_stderr);
  Drain(options.console.get(), to_console);
}

absl::Duration QemuProcess::KillIfDue(const ChildProcess& child) {
  absl::MutexLock lock(&mutex_);
  absl::Duration left = kill_at_ - Clock::Real().Monotonic();
  if (left > absl::ZeroDuration()) return std::min(left, kNever);
  if (absl::Status killed = child.Kill(SIGKILL); !killed.ok()) {
    LogError("the hypervisor could not be killed", {{"error", killed.ToString()}});
  }
  kill_at_ = absl::InfiniteDuration();
  return kNever;
}

}  // namespace still::session
