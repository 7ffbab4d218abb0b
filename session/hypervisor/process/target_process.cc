#include "session/hypervisor/process/target_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"

namespace still::session {
namespace {

constexpr size_t kMaxProcFile = 1 << 16;
constexpr absl::Duration kLook = absl::Microseconds(500);  // A thread stops within microseconds, or waits for a disk.

std::string ProcPath(pid_t pid, absl::string_view file) { return absl::StrCat("/proc/", pid, "/", file); }

// proc(5), /proc/pid/stat: "pid (name) state ..."; the name may hold anything, so the last parenthesis counts.
struct ThreadState {
  std::string name;
  char state = 'X';
};
ThreadState ParseStat(absl::string_view text) {
  size_t open = text.find('(');
  size_t close = text.rfind(')');
  if (open == text.npos || close == text.npos || close < open || close + 2 >= text.size()) return {};
  return {.name = std::string(text.substr(open + 1, close - open - 1)), .state = text[close + 2]};
}

bool CanRun(char state) { return state != 'T' && state != 'X' && state != 'Z'; }

}  // namespace

absl::StatusOr<TargetProcess> TargetProcess::Open(pid_t pid) {
  std::string what = absl::StrCat("process ", pid);
  OwnedFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return ErrnoStatus(errno, what);
  TargetProcess process(pid, std::move(pidfd));
  STILL_RETURN_IF_ERROR(Annotate(process.Signal(0), what));
  STILL_ASSIGN_OR_RETURN(std::string status, ReadFile(ProcPath(pid, "status"), kMaxProcFile));
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    if (!absl::ConsumePrefix(&line, "TracerPid:\t") || line == "0") continue;
    return absl::FailedPreconditionError(absl::StrCat(what, " is traced by process ", line, "; end the tracer first"));
  }
  return process;
}

absl::Status TargetProcess::Signal(int signal) const {
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0u) == 0) return absl::OkStatus();
  return ErrnoStatus(errno, absl::StrCat("signal ", signal));
}

bool TargetProcess::gone() const {
  pollfd ended{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&ended, 1, 0) > 0;
}

std::vector<std::string> TargetProcess::command() const {
  absl::StatusOr<std::string> text = ReadFile(ProcPath(pid_, "cmdline"), kMaxProcFile);
  if (!text.ok()) return {};
  return absl::StrSplit(absl::StripSuffix(*text, absl::string_view("\0", 1)), '\0');
}

absl::StatusOr<size_t> TargetProcess::CountRunning(std::string& one_of_them) const {
  absl::StatusOr<std::vector<std::string>> threads = ListDirectory(ProcPath(pid_, "task"));
  if (gone() || !threads.ok()) return absl::UnavailableError(absl::StrCat("process ", pid_, " has ended"));
  size_t running = 0;
  for (const std::string& thread : *threads) {
    absl::StatusOr<std::string> stat = ReadFile(ProcPath(pid_, absl::StrCat("task/", thread, "/stat")), kMaxProcFile);
    if (!stat.ok()) continue;  // It has ended meanwhile.
    ThreadState state = ParseStat(*stat);
    if (!CanRun(state.state)) continue;
    ++running;
    one_of_them =
        absl::StrCat("thread ", thread, " (", state.name, ") is in state ", absl::string_view(&state.state, 1));
  }
  return running;
}

absl::StatusOr<bool> TargetProcess::IsStopped() const {
  std::string ignored;
  STILL_ASSIGN_OR_RETURN(size_t running, CountRunning(ignored));
  return running == 0;
}

absl::Status TargetProcess::Stop(absl::Duration deadline) const {
  const absl::Duration end = Clock::Real().Monotonic() + deadline;
  STILL_RETURN_IF_ERROR(Signal(SIGSTOP));
  // Twice in a row: a thread that was made while we looked is not in the first list, but whoever made it was.
  for (int seen_stopped = 0; seen_stopped < 2;) {
    std::string thread;
    STILL_ASSIGN_OR_RETURN(size_t running, CountRunning(thread));
    seen_stopped = running == 0 ? seen_stopped + 1 : 0;
    if (running == 0) continue;
    if (Clock::Real().Monotonic() > end) {
      return absl::DeadlineExceededError(
          absl::StrCat("process ", pid_, " does not stop: ", thread, " after ", absl::FormatDuration(deadline)));
    }
    Clock::Real().Sleep(kLook);
  }
  return absl::OkStatus();
}

absl::Status TargetProcess::Continue() const {
  absl::Status sent = Signal(SIGCONT);
  return gone() ? absl::OkStatus() : sent;  // What has ended is not stopped either.
}

absl::StatusOr<bool> TargetProcess::HasOpen(const std::string& path) const {
  struct stat wanted {};
  if (::stat(path.c_str(), &wanted) != 0) return ErrnoStatus(errno, path);
  std::string directory = ProcPath(pid_, "fd");
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> descriptors, ListDirectory(directory));
  for (const std::string& descriptor : descriptors) {
    struct stat open {};
    if (::stat(JoinPath(directory, descriptor).c_str(), &open) != 0) continue;  // Closed meanwhile.
    bool same_device = S_ISBLK(wanted.st_mode) && S_ISBLK(open.st_mode) && open.st_rdev == wanted.st_rdev;
    if (same_device || (open.st_dev == wanted.st_dev && open.st_ino == wanted.st_ino)) return true;
  }
  return false;
}

}  // namespace still::session
