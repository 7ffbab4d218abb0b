#include "base/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/pipe.h"
#include "base/unix_socket.h"

extern char** environ;

namespace still {
namespace {

std::vector<std::string> MergedEnvironment(const std::vector<std::pair<std::string, std::string>>& changes) {
  std::map<std::string, std::string> variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    absl::string_view text(*entry);
    size_t equals = text.find('=');
    if (equals == absl::string_view::npos) continue;
    variables[std::string(text.substr(0, equals))] = std::string(text.substr(equals + 1));
  }
  for (const auto& [name, value] : changes) variables[name] = value;
  std::vector<std::string> merged;
  for (const auto& [name, value] : variables) merged.push_back(absl::StrCat(name, "=", value));
  return merged;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (std::string& text : strings) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Everything the child needs, prepared before fork: between fork and exec only async-signal-safe calls are allowed.
struct ChildPlan {
  std::vector<char*> argv;
  std::vector<char*> environment;
  const ProcessOptions* options;
  std::vector<int> kept_fds;  // Sorted.
  pid_t parent;
  int error_pipe;
};

void CloseAllBut(const std::vector<int>& kept_fds) {
  unsigned int next = 3;
  for (int fd : kept_fds) {
    if (fd < 3) continue;
    auto kept = static_cast<unsigned int>(fd);
    if (kept > next) ::syscall(SYS_close_range, next, kept - 1, 0u);
    next = kept + 1;
  }
  ::syscall(SYS_close_range, next, ~0u, 0u);
}

// By system calls: the C library's functions would have the parent's other threads do the same, which are not here. Leaving
// uid 0 clears all capabilities (capabilities(7)).
bool Become(const ProcessUser& user) {
  return ::syscall(SYS_setgroups, 0, nullptr) == 0 && ::syscall(SYS_setresgid, user.gid, user.gid, user.gid) == 0 &&
         ::syscall(SYS_setresuid, user.uid, user.uid, user.uid) == 0 && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  auto fail = [&plan] {
    int error_number = errno;
    [[maybe_unused]] ssize_t written = ::write(plan.error_pipe, &error_number, sizeof error_number);
    ::_exit(127);
  };
  if (plan.options->new_session) ::setsid();
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  int null_fd = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  const int wanted[3] = {plan.options->stdin_fd, plan.options->stdout_fd, plan.options->stderr_fd};
  // Duplicated out of the way first: a wanted descriptor may itself be 0, 1 or 2.
  int source[3];
  for (int i = 0; i < 3; ++i) {
    source[i] = ::fcntl(wanted[i] >= 0 ? wanted[i] : null_fd, F_DUPFD_CLOEXEC, 3);
    if (source[i] < 0) fail();
  }
  for (int i = 0; i < 3; ++i) {
    if (::dup2(source[i], i) < 0) fail();
  }
  for (int fd : plan.options->inherited_fds) {
    int flags = ::fcntl(fd, F_GETFD);
    if (flags < 0 || ::fcntl(fd, F_SETFD, flags & ~FD_CLOEXEC) < 0) fail();
  }
  CloseAllBut(plan.kept_fds);
  if (!plan.options->working_directory.empty() && ::chdir(plan.options->working_directory.c_str()) != 0) fail();
  if (plan.options->user.has_value() && !Become(*plan.options->user)) fail();
  // Behind the change of user, which takes it back (prctl(2)).
  if (plan.options->end_with_parent) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent may have died before the line above.
    if (::getppid() != plan.parent) ::_exit(127);
  }
  ::execvpe(plan.argv[0], plan.argv.data(), plan.environment.data());
  fail();
  ::_exit(127);
}

}  // namespace

std::string ProcessExit::ToString() const {
  if (signal != 0) return absl::StrCat("signal ", signal, " (", ::strsignal(signal), ")");
  return absl::StrCat("exit code ", exit_code);
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const ProcessOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("start process: no command given");
  STILL_ASSIGN_OR_RETURN(Pipe error, MakePipe());

  std::vector<std::string> argv = options.argv;
  std::vector<std::string> environment = MergedEnvironment(options.environment);
  ChildPlan plan{.argv = Pointers(argv),
                 .environment = Pointers(environment),
                 .options = &options,
                 .kept_fds = options.inherited_fds,
                 .parent = ::getpid(),
                 .error_pipe = error.write_end.get()};
  plan.kept_fds.push_back(error.write_end.get());
  std::sort(plan.kept_fds.begin(), plan.kept_fds.end());

  pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) RunChild(plan);
  error.write_end.Reset();

  OwnedFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) {
    int error_number = errno;
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return ErrnoStatus(error_number, "pidfd_open");
  }
  ChildProcess child(pid, std::move(pidfd));
  int child_errno = 0;
  ssize_t got;
  do {
    got = ::read(error.read_end.get(), &child_errno, sizeof child_errno);
  } while (got < 0 && errno == EINTR);
  if (got == sizeof child_errno) return ErrnoStatus(child_errno, absl::StrCat("start ", options.argv[0]));
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::move(other.pidfd_)), ended_(other.ended_), exit_(other.exit_) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    KillAndReap();
    pid_ = std::exchange(other.pid_, -1);
    pidfd_ = std::move(other.pidfd_);
    ended_ = other.ended_;
    exit_ = other.exit_;
  }
  return *this;
}

ChildProcess::~ChildProcess() { KillAndReap(); }

void ChildProcess::KillAndReap() {
  if (pid_ < 0 || ended_) return;
  // Both can only fail when the child is gone already.
  (void)Kill(SIGKILL);
  (void)Wait();
}

absl::StatusOr<ProcessExit> ChildProcess::Wait(absl::Duration timeout) {
  if (ended_) return exit_;
  STILL_RETURN_IF_ERROR(WaitReadable(pidfd_.get(), timeout, absl::StrCat("process ", pid_)));
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED) != 0) {
    return ErrnoStatus(errno, absl::StrCat("wait for process ", pid_));
  }
  ended_ = true;
  if (info.si_code == CLD_EXITED) {
    exit_.exit_code = info.si_status;
  } else {
    exit_.signal = info.si_status;
  }
  return exit_;
}

absl::Status ChildProcess::Kill(int signal) const {
  if (ended_ || pid_ < 0) return absl::OkStatus();
  if (::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0) != 0 && errno != ESRCH) {
    return ErrnoStatus(errno, absl::StrCat("signal ", signal, " to process ", pid_));
  }
  return absl::OkStatus();
}

void ChildProcess::Release() {
  pid_ = -1;
  pidfd_.Reset();
}

}  // namespace still
