#include "tools/stilld/daemon.h"

#include <signal.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "schedule/schedule_service.h"
#include "tools/stilld/http_server.h"
#include "tools/stilld/socket_server.h"

namespace still::daemon {
namespace {

using schedule::Supervisor;

// After an error that may pass: a full disk, a catalog that somebody keeps locked.
constexpr absl::Duration kAfterError = absl::Seconds(5);

// The socket that systemd passed, or one of our own.
absl::StatusOr<OwnedFd> ListeningSocket(const std::string& state) {
  const int passed = ::sd_listen_fds(/*unset_environment=*/1);
  if (passed == 1) return OwnedFd(SD_LISTEN_FDS_START);
  if (passed > 1) return absl::InvalidArgumentError("systemd passed more than one socket");
  return ListenUnix(schedule::SocketPath(state));
}

// Half of what systemd allows between two signs of life; infinite: it wants none.
absl::Duration WatchdogPeriod() {
  uint64_t microseconds = 0;
  if (::sd_watchdog_enabled(/*unset_environment=*/0, &microseconds) <= 0) return absl::InfiniteDuration();
  return absl::Microseconds(microseconds) / 2;
}

// Wakes the supervisor when the daemon shall end.
class EndSignals {
 public:
  explicit EndSignals(Supervisor& supervisor) : supervisor_(supervisor) {
    ::sigemptyset(&set_);
    for (int signal : {SIGTERM, SIGINT, SIGUSR2}) ::sigaddset(&set_, signal);
    thread_ = std::thread([this] {
      int signal = 0;
      ::sigwait(&set_, &signal);
      if (signal != SIGUSR2) LogInfo("ending on a signal", {{"signal", signal}});
      ended_ = true;
      supervisor_.Wake();
    });
  }
  ~EndSignals() {
    ::pthread_kill(thread_.native_handle(), SIGUSR2);  // For itself, when it ends for another reason.
    thread_.join();
  }
  bool ended() const { return ended_; }

 private:
  Supervisor& supervisor_;
  sigset_t set_;
  std::atomic<bool> ended_ = false;
  std::thread thread_;
};

struct TurnResult {
  bool full = false;
  absl::Duration wait;  // For the next.
};

// One turn. An error is one that does not pass.
absl::StatusOr<TurnResult> Turn(Supervisor& supervisor) {
  absl::StatusOr<absl::Duration> wait = supervisor.Step();
  if (wait.ok()) return TurnResult{.full = true, .wait = *wait};
  // Only a new start sees another book; a repository may come back.
  if (absl::Status same = supervisor.book().CheckNotReplaced(); absl::IsFailedPrecondition(same)) return same;
  LogError("schedules cannot be worked on", {{"error", wait.status().ToString()}});
  return TurnResult{.full = false, .wait = kAfterError};
}

absl::Status Work(Supervisor& supervisor, const EndSignals& signals, absl::Duration drain, SocketServer& server) {
  const absl::Duration watchdog = WatchdogPeriod();
  absl::Duration give_up = absl::InfiniteDuration();
  while (!signals.ended() || (supervisor.running() > 0 && Clock::Real().Monotonic() < give_up)) {
    if (signals.ended() && give_up == absl::InfiniteDuration()) {
      give_up = Clock::Real().Monotonic() + drain;
      ::sd_notify(0, "STOPPING=1");
      server.SetServing(false);
      supervisor.Drain();
    }
    STILL_ASSIGN_OR_RETURN(const TurnResult turn, Turn(supervisor));
    // Neither a turn that hangs nor one that fails is a sign of life.
    if (turn.full) {
      ::sd_notify(0, absl::StrCat("WATCHDOG=1\nSTATUS=", supervisor.running(), " runs under way").c_str());
    } else {
      ::sd_notify(0, "STATUS=schedules cannot be worked on; see the journal");
    }
    supervisor.Sleep(
        std::min({turn.wait, watchdog, std::max(give_up - Clock::Real().Monotonic(), absl::ZeroDuration())}));
  }
  if (size_t left = supervisor.running(); left > 0) LogInfo("runs go on by themselves", {{"count", left}});
  return absl::OkStatus();
}

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options) {
  STILL_RETURN_IF_ERROR(MakeDirectories(options.supervisor.state));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<Supervisor> supervisor, Supervisor::Open(options.supervisor));
  STILL_RETURN_IF_ERROR(supervisor->TakeCharge());
  // Only now: whoever is in charge may replace the socket of one that crashed.
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListeningSocket(options.supervisor.state));
  EndSignals signals(*supervisor);
  schedule::ScheduleService service(*supervisor);
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<SocketServer> server, SocketServer::Start(std::move(listening), service));
  std::unique_ptr<HttpServer> http;
  if (!options.http.empty()) {
    STILL_ASSIGN_OR_RETURN(http, HttpServer::Start(options.http, *supervisor));
  }
  LogInfo("stilld is ready", {{"state", options.supervisor.state},
                              {"repository", options.supervisor.repository.path},
                              {"http", http == nullptr ? "off" : http->address()}});
  ::sd_notify(0, "READY=1");
  return Work(*supervisor, signals, options.drain, *server);
}

}  // namespace still::daemon
