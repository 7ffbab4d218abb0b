// still-agent: puts the parts together. See docs/guest-agent.md.
#include <fcntl.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <optional>

#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "guest-agent/connection.h"
#include "guest-agent/freeze_controller.h"
#include "guest-agent/guardian.h"
#include "guest-agent/guest_server.h"
#include "guest-agent/identity/identity.h"
#include "guest-agent/kernel_freezer.h"
#include "guest-agent/options.h"
#include "guest-agent/quiet_log.h"
#include "guest-agent/recovery.h"

namespace still::agent {
namespace {

constexpr absl::Duration kThawHookTimeout = absl::Seconds(10);
// Locked memory holds every thread's whole stack, so they are smaller than the usual 8 MiB.
constexpr size_t kStackBytes = 512 << 10;

void WriteToStderr(absl::string_view line) {
  // A log that cannot be written has nowhere to report it.
  [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
}

// Never destroyed: gRPC's threads may log until the process is gone.
QuietLog& TheLog() {
  static QuietLog* log = new QuietLog(WriteToStderr);
  return *log;
}

void LogForGrpc(gpr_log_func_args* args) {
  if (args->severity != GPR_LOG_SEVERITY_ERROR) return;
  LogDebug("grpc", {{"message", args->message}});
}

void BoundMemory() {
  pthread_attr_t attributes;
  STILL_CHECK(::pthread_attr_init(&attributes) == 0);
  STILL_CHECK(::pthread_attr_setstacksize(&attributes, kStackBytes) == 0);
  STILL_CHECK(::pthread_setattr_default_np(&attributes) == 0);
  ::pthread_attr_destroy(&attributes);
  ::mallopt(M_ARENA_MAX, 2);
}

// While frozen the out-of-memory killer must not choose the one process that can thaw the guest; at other times the
// programs that it starts must not inherit the protection.
void ProtectFromOomKiller(bool on) {
  absl::StatusOr<OwnedFd> fd = OpenFile("/proc/self/oom_score_adj", O_WRONLY);
  if (fd.ok()) (void)WriteAll(fd->get(), on ? "-900" : "0", on ? 4 : 1, "oom_score_adj");
}

// What the guardian keeps between two lives of the agent.
struct Inheritance {
  Options options;
  std::optional<RecoveredFreeze> recovered;
};

void Recover(Inheritance& inheritance) {
  KernelFreezer freezer;
  HookPrograms hooks(inheritance.options.hooks);
  auto recovered =
      ThawAfterAgentDeath(freezer, FreezeMarker(inheritance.options.marker), hooks, Clock::Real(), kThawHookTimeout);
  if (!recovered.ok()) LogError("cannot thaw", {{"error", recovered.status().ToString()}});
  if (recovered.ok() && recovered->has_value()) inheritance.recovered = **recovered;
}

void RecoverInGuardian(void* context) {
  LogError("the agent died, starting it again");
  Recover(*static_cast<Inheritance*>(context));
}

// Waits, and tells whether it may go on.
bool Pause(absl::Duration duration, int stop_fd) { return !WaitReadable(stop_fd, duration, "stop").ok(); }

void DialForEver(GuestServer& server, const Endpoint& endpoint, int stop_fd) {
  Backoff backoff;
  while (Pause(backoff.Next(), stop_fd)) {
    absl::StatusOr<OwnedFd> connection = Dial(endpoint);
    if (!connection.ok()) {
      LogDebug("cannot reach the host", {{"error", connection.status().ToString()}});
      continue;
    }
    absl::Duration start = Clock::Real().Monotonic();
    absl::StatusOr<bool> served = server.Serve(*std::move(connection), stop_fd);
    if (!served.ok()) LogError("cannot serve the host", {{"error", served.status().ToString()}});
    if (Clock::Real().Monotonic() - start > absl::Seconds(1)) backoff.Reset();
    LogInfo("connection ended");
  }
}

absl::Status AcceptForEver(GuestServer& server, absl::string_view address, int stop_fd) {
  STILL_ASSIGN_OR_RETURN(OwnedFd listening, ListenUnix(std::string(absl::StripPrefix(address, "unix:"))));
  while (Pause(absl::ZeroDuration(), stop_fd)) {
    absl::StatusOr<OwnedFd> connection = AcceptWithin(listening.get(), absl::Milliseconds(100), address);
    if (!connection.ok()) continue;
    if (::fcntl(connection->get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "set non-blocking");
    (void)server.Serve(*std::move(connection), stop_fd);
  }
  return absl::OkStatus();
}

absl::Status RunAgent(Inheritance& inheritance) {
  const Options& options = inheritance.options;
  BoundMemory();
  // First of all: nobody may wait for us longer than needed.
  Recover(inheritance);

  ::signal(SIGPIPE, SIG_IGN);
  sigset_t ending;
  ::sigemptyset(&ending);
  ::sigaddset(&ending, SIGTERM);
  ::sigaddset(&ending, SIGINT);
  // Before any thread exists, so that all inherit it and the descriptor gets every signal.
  STILL_CHECK(::pthread_sigmask(SIG_BLOCK, &ending, nullptr) == 0);
  OwnedFd stop(::signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!stop.valid()) return ErrnoStatus(errno, "signalfd");

  STILL_ASSIGN_OR_RETURN(std::unique_ptr<LeaseTimer> timer, MakeKernelLeaseTimer());
  KernelFreezer freezer;
  HookPrograms hooks(options.hooks);
  KernelDisks disks;
  FreezeController controller({.freezer = freezer,
                               .hooks = hooks,
                               .disks = disks,
                               .marker = FreezeMarker(options.marker),
                               .timer = *timer,
                               .clock = Clock::Real(),
                               .set_quiet = [](bool quiet) {
                                 ProtectFromOomKiller(quiet);
                                 TheLog().SetQuiet(quiet);
                               }});
  if (inheritance.recovered) controller.Recovered(*inheritance.recovered);
  RealIdentityKernel identity_kernel;
  IdentityAdopter identity({.kernel = identity_kernel, .controller = controller, .clock = Clock::Real(), .root = ""});
  KernelPower power;
  GuestService service(controller, identity, power, Clock::Real());
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<GuestServer> server, GuestServer::Start(service));
  absl::Status status;
  if (options.listen.empty()) {
    DialForEver(*server, options.endpoint, stop.get());
  } else {
    status = AcceptForEver(*server, options.listen, stop.get());
  }
  while (power.ending()) Clock::Real().Sleep(absl::Seconds(1));
  controller.ThawBeforeExit();
  return status;
}

int Main(const std::vector<std::string>& arguments) {
  SetLogLevel(LogLevel::kInfo);
  SetLogSink([](absl::string_view line) { TheLog().Line(line); });
  gpr_set_log_function(LogForGrpc);
  absl::StatusOr<Options> options = ParseOptions(arguments);
  if (!options.ok()) {
    std::fprintf(stderr, "still-agent: %s\n%s", std::string(options.status().message()).c_str(), OptionsHelp().c_str());
    return 2;
  }
  if (options->help || options->version) {
    std::fputs(options->help ? OptionsHelp().c_str() : "still-agent " STILL_VERSION "\n", stdout);
    return 0;
  }
  if (!options->cmdline.empty()) {
    absl::StatusOr<std::string> text = ReadFile(options->cmdline, 64 << 10);
    absl::Status status = text.ok() ? ApplyKernelCommandLine(*text, *options) : text.status();
    if (!status.ok()) LogError("kernel command line", {{"error", status.ToString()}});
  }
  if (options->off) return 0;
  // A guest's first program may have no environment at all.
  ::setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 0);
  Inheritance inheritance{*std::move(options), std::nullopt};
  if (inheritance.options.guardian) SplitGuardian(RecoverInGuardian, &inheritance);
  absl::Status status = RunAgent(inheritance);
  if (!status.ok()) LogError("ending", {{"error", status.ToString()}});
  return ExitCode(status);
}

}  // namespace
}  // namespace still::agent

int main(int argc, char** argv) { return still::agent::Main({argv + 1, argv + argc}); }
