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
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"
#include "base/secret.h"
#include "base/status.h"
#include "session/control/control_service.h"
#include "session/control/session_registry.h"
#include "session/hypervisor/bounded_log.h"
#include "session/restore_launch.h"
#include "session/session.h"

namespace still {
namespace {

using session::Session;

struct Arguments {
  std::string directory;
  int report_fd = -1;
  int ram_fd = -1;
  int disk_secret_fd = -1;
};

// Tells whoever started us, once, and closes the pipe. False: nobody waits any more.
bool Report(OwnedFd& pipe, const absl::StatusOr<sessionpb::LaunchReport>& ready) {
  if (!pipe.valid()) return true;
  sessionpb::LaunchReport report = ready.ok() ? *ready : sessionpb::LaunchReport();
  report.set_code(static_cast<int>(ready.status().code()));
  report.set_message(ready.ok() ? "ready" : std::string(ready.status().message()));
  std::string bytes = report.SerializeAsString();
  absl::Status written = WriteAll(pipe.get(), bytes.data(), bytes.size(), "report pipe");
  if (!written.ok()) LogWarning("nobody waits for this session any more", {{"error", written.ToString()}});
  pipe.Reset();
  return written.ok();
}

// SIGTERM and SIGINT stop the session. Blocked in every thread and taken by one, so that nothing runs in a handler.
class StopSignals {
 public:
  StopSignals() {
    ::sigemptyset(&set_);
    ::sigaddset(&set_, SIGTERM);
    ::sigaddset(&set_, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
  }
  void Watch(std::function<void()> stop) {
    std::thread([set = set_, stop = std::move(stop)] {
      int signal = 0;
      ::sigwait(&set, &signal);
      LogInfo("stopping on a signal", {{"signal", signal}});
      stop();
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

absl::StatusOr<sessionpb::LaunchReport> MakeReady(Session& session) {
  const sessionpb::SessionConfig& config = session.config();
  absl::Duration timeout = absl::Seconds(config.agent_deadline_s());
  if (config.has_restore() || config.has_identity()) return session::LaunchRestored(session, timeout);
  if (config.agent_deadline_s() > 0) STILL_RETURN_IF_ERROR(session.WaitForAgent(timeout));
  return sessionpb::LaunchReport();
}

absl::Status Run(const Arguments& arguments, OwnedFd& report) {
  StopSignals signals;
  STILL_ASSIGN_OR_RETURN(sessionpb::SessionConfig config, session::ReadSessionConfig(arguments.directory));
  session::StartOptions options;
  options.directory = arguments.directory;
  options.ram = OwnedFd(arguments.ram_fd);
  options.disk_secret = OwnedFd(arguments.disk_secret_fd);
  if (options.disk_secret.valid()) ::fcntl(options.disk_secret.get(), F_SETFD, FD_CLOEXEC);
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<Session> session, Session::Start(config, std::move(options)));
  signals.Watch(session->stop_handle());

  session::ControlService service(*session);
  if (const char* path = std::getenv("STILL_FAULT_FILE"); path != nullptr) service.captures().SetFaultFile(path);
  absl::StatusOr<sessionpb::LaunchReport> ready = MakeReady(*session);
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
  if (!ready.ok()) session->Stop();
  if (ready.ok() && config.disk_server().hydrate()) session->Hydrate(config.disk_server().hydrate_bytes_per_second());
  // Whoever asked for this session was killed: it may have been half of something (a rollback, one of several), and nobody
  // has been told that it runs.
  if (!Report(report, ready)) session->Stop();

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
  app.add_option("--report-fd", arguments.report_fd, "Descriptor for the report: ready, or the error");
  app.add_option("--disk-secret-fd", arguments.disk_secret_fd, "Descriptor of what the disk server needs");
  app.add_option("--ram-fd", arguments.ram_fd, "Descriptor of the memory image to continue");
  CLI11_PARSE(app, argc, argv);
  still::SetLogLevel(still::LogLevel::kInfo);
  still::SessionLog::Begin(arguments.directory);
  ::signal(SIGPIPE, SIG_IGN);
  // The repository's, of an older `still` that started us: the hypervisor, which serves the guest, must not inherit it.
  (void)still::TakeSecretVariable("STILL_PASSPHRASE");
  still::OwnedFd report(arguments.report_fd);
  if (report.valid()) ::fcntl(report.get(), F_SETFD, FD_CLOEXEC);
  absl::Status status = still::Run(arguments, report);
  if (!status.ok()) {
    still::LogError("session failed", {{"error", status.ToString()}});
    still::Report(report, status);
  }
  return still::ExitCode(status);
}
