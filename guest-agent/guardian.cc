#include "guest-agent/guardian.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "base/log.h"

namespace still::agent {
namespace {

volatile sig_atomic_t told_to_stop = 0;
volatile sig_atomic_t agent_pid = 0;

void ForwardSignal(int signal) {
  told_to_stop = 1;
  if (agent_pid > 0) ::kill(agent_pid, signal);
}

// Blocks until the agent ends; other children are strays that process 1 inherits.
int WaitForAgent(pid_t agent) {
  for (;;) {
    int status = 0;
    pid_t ended = ::waitpid(-1, &status, 0);
    if (ended == agent) return status;
    if (ended < 0 && errno != EINTR) return 0;
  }
}

}  // namespace

void SplitGuardian(void (*on_death)(void* context), void* context) {
  for (;;) {
    pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGTERM, SIG_DFL);
      ::signal(SIGINT, SIG_DFL);
      return;
    }
    if (child < 0) {
      LogError("cannot start the agent");
      ::sleep(1);
      continue;
    }
    agent_pid = child;
    struct sigaction action {};
    action.sa_handler = ForwardSignal;
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigaction(SIGINT, &action, nullptr);
    // It must not wait for a page of its own that lies on a frozen file system either. Locks are not inherited by fork.
    (void)::mlockall(MCL_CURRENT);
    int status = WaitForAgent(child);
    agent_pid = 0;
    if (told_to_stop || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
      std::exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    on_death(context);
    // A usage error would only repeat itself.
    if (WIFEXITED(status) && WEXITSTATUS(status) == 2) std::exit(2);
    timespec pause{.tv_sec = 0, .tv_nsec = 200'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace still::agent
