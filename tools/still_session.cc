// still-session: owns one VM. Started by `still run` and `still restore` (SessionRegistry::Launch), serves
// SessionControl in its session's directory, and ends when the VM does.
#include <fcntl.h>
#include <grpc/support/log.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "base/secret.h"
#include "base/status.h"
#include "session/control/control_service.h"
#include "session/control/launch_report.h"
#include "session/control/session_autostart.h"
#include "session/control/session_lock.h"
#include "session/control/session_registry.h"
#include "session/guest/adopt_identity.h"
#include "session/hypervisor/bounded_log.h"
#include "session/restore_launch.h"
#include "session/session.h"
#include "session/session_config.h"

namespace still {
namespace {

using session::Session;

struct Arguments {
  std::string directory;
  int report_fd = -1;
  int lock_fd = -1;
  int ram_fd = -1;
  int disk_secret_fd = -1;
};

// Less than the units' TimeoutStopSec.
constexpr absl::Duration kPowerOffGrace = absl::Seconds(60);

// SIGTERM and SIGINT end the session at once; the signal of a host that is shut down asks its guest to power off first.
// Blocked in every thread and taken by one, so that nothing runs in a handler.
class StopSignals {
 public:
  StopSignals() {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGTERM);
    ::sigaddset(&set_, SIGINT);
    ::sigaddset(&set_, session::EndOfHostSignal());
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  void Watch(std::function<void(absl::Duration grace)> stop) {
    std::thread([set = set_, stop = std::move(stop)] {
      for (;;) {
        int signal = 0;
        ::sigwait(&set, &signal);
        LogInfo("stopping on a signal", {{"signal", signal}});
        const bool host_ends = signal == session::EndOfHostSignal();
        // In a thread of its own: a second signal may shorten it.
        std::thread([stop, host_ends] { stop(host_ends ? kPowerOffGrace : absl::ZeroDuration()); }).detach();
      }
    }).detach();
  }

 private:
  sigset_t set_;
};

// Bounds session.log, which the guest makes grow by what it does and says. Never destroyed: threads may log until the
// process is gone.
class SessionLog {
 public:
  static void Begin(const std::string& directory) {
    absl::StatusOr<session::BoundedLog> log = session::BoundedLog::Continue(JoinPath(directory, "session.log"));
    if (!log.ok()) return LogWarning("the log is not bounded", {{"error", log.status().ToString()}});
    the_log_ = new SessionLog(*std::move(log));
    SetLogSink([](absl::string_view line) { the_log_->Line(line); });
    gpr_set_log_function([](gpr_log_func_args* line) {
      if (line->severity == GPR_LOG_SEVERITY_ERROR) LogDebug("grpc", {{"message", line->message}});
    });
  }

 private:
  explicit SessionLog(session::BoundedLog log) : log_(std::move(log)) {}
  void Line(absl::string_view line) {
    absl::MutexLock lock(&mutex_);
    const int before = log_.fd();
    log_.Append(line);
    // The last words of a process that aborts belong into the newest file.
    if (log_.fd() != before) ::dup2(log_.fd(), STDERR_FILENO);
  }

  static SessionLog* the_log_;
  absl::Mutex mutex_;
  session::BoundedLog log_ ABSL_GUARDED_BY(mutex_);
};
SessionLog* SessionLog::the_log_ = nullptr;

absl::StatusOr<sessionpb::LaunchReport> MakeReady(Session& session, session::LaunchReporter& reporter) {
  const sessionpb::SessionConfig& config = session.config();
  if (config.has_restore() || config.has_identity()) {
    return session::LaunchRestored(session, [&reporter](const std::string& step) { reporter.Step(step); });
  }
  if (config.agent_deadline_s() > 0) {
    reporter.Step("wait for the guest's agent");
    STILL_RETURN_IF_ERROR(session.WaitForAgent(absl::Seconds(config.agent_deadline_s())));
  }
  return sessionpb::LaunchReport();
}

// The lock that says that we work here, for as long as we live: inherited, or taken by one that was started by hand.
absl::StatusOr<OwnedFd> HoldLock(const Arguments& arguments) {
  if (arguments.lock_fd < 0) return session::LockSession(arguments.directory);
  ::fcntl(arguments.lock_fd, F_SETFD, FD_CLOEXEC);
  return OwnedFd(arguments.lock_fd);
}

absl::Status Run(const Arguments& arguments, session::LaunchReporter& reporter) {
  StopSignals signals;
  STILL_ASSIGN_OR_RETURN(sessionpb::SessionConfig config, session::ReadSessionConfig(arguments.directory));
  sessionpb::SessionStart start;
  start.set_boot_id(session::HostBootId());
  start.set_at_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
  STILL_RETURN_IF_ERROR(session::WriteSessionStart(arguments.directory, start));
  session::StartOptions options;
  options.directory = arguments.directory;
  options.ram = OwnedFd(arguments.ram_fd);
  options.disk_secret = OwnedFd(arguments.disk_secret_fd);
  if (options.disk_secret.valid()) ::fcntl(options.disk_secret.get(), F_SETFD, FD_CLOEXEC);
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, Session::Start(config, std::move(options)));
  signals.Watch(session->stop_handle());
  reporter.Watch([stop = session->stop_handle()] { stop(absl::ZeroDuration()); });

  session::ControlService service(*session);
  if (const char* path = std::getenv("STILL_FAULT_FILE"); path != nullptr) service.captures().SetFaultFile(path);
  absl::StatusOr<sessionpb::LaunchReport> ready = MakeReady(*session, reporter);
  std::unique_ptr<grpc::Server> server;
  if (ready.ok()) {
    absl::StatusOr<std::unique_ptr<grpc::Server>> served =
        session::ServeControl(service, JoinPath(arguments.directory, "control.sock"));
    if (served.ok()) {
      server = *std::move(served);
    } else {
      ready = served.status();
    }
  }
  if (!ready.ok()) session->Fail(ready.status());
  if (ready.ok() && config.disk_server().hydrate()) session->Hydrate(config.disk_server().hydrate_bytes_per_second());
  if (!reporter.Finish(ready)) session->Stop();
  if (ready.ok()) {
    start.set_ready(true);
    start.set_network_down(config.has_identity() &&
                           !session::MayUseNetwork(session->identity().value_or(guestpb::AdoptIdentityResponse())));
    if (absl::Status noted = session::WriteSessionStart(arguments.directory, start); !noted.ok()) {
      LogWarning("that the session is ready was not noted", {{"error", noted.ToString()}});
    }
  }

  session::SessionEnd end = session->Wait();
  LogInfo("session ended", {{"session", config.name()}, {"end", end.ShortDebugString()}});
  service.captures().Abort();
  // Callers of Wait and Stop get their answers; what hangs is cut off.
  if (server != nullptr) server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
  absl::Status recorded = session::WriteSessionEnd(arguments.directory, end);
  absl::Status removed = RemoveFile(JoinPath(arguments.directory, "control.sock"));
  return FirstError(ready.status(), FirstError(recorded, removed));
}

}  // namespace
}  // namespace still

int main(int argc, char** argv) {
  CLI::App app("Owns one VM of Stillpoint. Started by `still run` and `still restore`, not by hand.", "still-session");
  still::Arguments arguments;
  app.add_option("--directory", arguments.directory, "The session's directory, with its session.json")->required();
  app.add_option("--report-fd", arguments.report_fd, "Socket for the report: ready, or the error");
  app.add_option("--lock-fd", arguments.lock_fd, "Descriptor that holds the directory's lock");
  app.add_option("--disk-secret-fd", arguments.disk_secret_fd, "Descriptor of what the disk server needs");
  app.add_option("--ram-fd", arguments.ram_fd, "Descriptor of the memory image to continue");
  CLI11_PARSE(app, argc, argv);
  still::SetLogLevel(still::LogLevel::kInfo);
  still::SessionLog::Begin(arguments.directory);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // A file that would be longer than allowed is an error, too.
  // The repository's, of an older `still` that started us: the hypervisor, which serves the guest, must not inherit it.
  (void)still::TakeSecretVariable("STILL_PASSPHRASE");
  if (arguments.report_fd >= 0) ::fcntl(arguments.report_fd, F_SETFD, FD_CLOEXEC);
  still::session::LaunchReporter reporter{still::OwnedFd(arguments.report_fd)};
  absl::StatusOr<still::OwnedFd> lock = still::HoldLock(arguments);
  absl::Status status = lock.ok() ? still::Run(arguments, reporter) : lock.status();
  if (lock.ok() && !status.ok() && !still::PathExists(still::JoinPath(arguments.directory, "end.json"))) {
    status = still::FirstError(
        status, still::session::WriteSessionEnd(arguments.directory, still::session::FailedStart(status)));
  }
  if (!status.ok()) {
    still::LogError("session failed", {{"error", status.ToString()}});
    reporter.Finish(status);
  }
  return still::ExitCode(status);
}
