// Child processes: started without a shell, watched by pidfd, ended by pid, never by name.
//
//   STILL_ASSIGN_OR_RETURN(ChildProcess qemu, ChildProcess::Start({.argv = {...}, .end_with_parent = true}));
//
// The destructor kills (SIGKILL) and reaps a child that still runs: nothing is left behind. Release() lets it live on.
// Not thread-safe, but Kill() may be called from any thread while another waits.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still {

struct ProcessExit {
  int exit_code = 0;  // Meaningful when signal is 0.
  int signal = 0;     // The signal that ended it, or 0.
  bool ok() const { return exit_code == 0 && signal == 0; }
  std::string ToString() const;  // "exit code 1", "signal 9 (Killed)"
};

// Whom a child of root's is, instead of root: without other groups, without capabilities, and no program that it starts
// gives it more (no_new_privs).
struct ProcessUser {
  uid_t uid;
  gid_t gid;
};

struct ProcessOptions {
  std::vector<std::string> argv;  // argv[0] is looked up in PATH.
  // Added to, or replacing in, our own environment.
  std::vector<std::pair<std::string, std::string>> environment;
  std::string working_directory;  // Empty: ours.
  // stdin, stdout, stderr of the child; -1: /dev/null. Only borrowed.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = 2;
  // Other descriptors it inherits, under the same numbers. Everything else is closed.
  std::vector<int> inherited_fds;
  // SIGKILL for it when the thread that starts it ends (prctl(2), PR_SET_PDEATHSIG: the *thread*, so start it from one
  // that lives as long as the process).
  bool end_with_parent = false;
  // A session of its own (setsid): no terminal, no signals of our process group.
  bool new_session = false;
  // The program itself must be one that this user may execute. PERMISSION_DENIED for who is not root.
  std::optional<ProcessUser> user;
};

class ChildProcess {
 public:
  static absl::StatusOr<ChildProcess> Start(const ProcessOptions& options);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  // Readable once the child has ended (pidfd_open(2)).
  int pidfd() const { return pidfd_.get(); }
  // Blocks until the child ends, or DEADLINE_EXCEEDED. Callable again: gives the same exit.
  absl::StatusOr<ProcessExit> Wait(absl::Duration timeout = absl::InfiniteDuration());
  // By pidfd, so never to a recycled pid. OK when it has already ended.
  absl::Status Kill(int signal) const;
  // The child lives on; it is no longer reaped by us.
  void Release();

 private:
  ChildProcess(pid_t pid, OwnedFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  void KillAndReap();

  pid_t pid_ = -1;
  OwnedFd pidfd_;
  bool ended_ = false;
  ProcessExit exit_;
};

struct CommandOutput {
  ProcessExit exit;
  std::string stdout_text;
  std::string stderr_text;
};
// Runs to the end and collects what it prints (each stream up to 1 MiB; what is more is read and dropped). The child is
// killed at the deadline: DEADLINE_EXCEEDED. A non-zero exit is not an error here: look at `exit`. What the child leaves behind
// is not waited for, also where it still holds the output open: what it prints afterwards is lost.
absl::StatusOr<CommandOutput> RunCommand(ProcessOptions options, absl::Duration timeout);

}  // namespace still
