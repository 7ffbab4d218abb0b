// stilld: scheduled snapshots. With --execute it is a worker that does one run (schedule/worker.h).
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <string>

#include "base/file.h"
#include "base/find_sibling.h"
#include "base/home_directory.h"
#include "base/host_identity.h"
#include "base/log.h"
#include "base/quantity.h"
#include "base/secret.h"
#include "base/status.h"
#include "schedule/timing.h"
#include "schedule/worker.h"
#include "session/control/session_registry.h"
#include "tools/still/command_tree.h"
#include "tools/still/credentials.h"
#include "tools/still/man_page.h"
#include "tools/stilld/daemon.h"

namespace still::daemon {
namespace {

struct Arguments {
  std::string state;
  std::string repository;
  std::string key_file;
  std::string passphrase;  // Of the environment, which does not have it any more.
  int secret_fd = -1;      // What a worker is given instead.
  std::string http;
  std::string drain = "60s";
  std::string notify_command;
  std::string webhook;
  std::string mail_to;
  std::string ping;
  int max_running = 2;
  int64_t execute = 0;
  std::string man_directory;
  std::string man_date;
};

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

void AddOptions(CLI::App& app, Arguments& arguments) {
  app.set_version_flag("--version", "stilld " STILL_VERSION);
  app.set_config("--config", "/etc/stillpoint/stilld.conf", "Any of these options, as NAME=VALUE lines");
  arguments.state = DefaultStateDirectory();
  arguments.repository = Environment("STILL_REPO");
  arguments.key_file = Environment("STILL_KEY_FILE");
  arguments.passphrase = TakeSecretVariable("STILL_PASSPHRASE");
  app.add_option("--state", arguments.state, "State directory (STILL_STATE)")->capture_default_str();
  app.add_option("--repo", arguments.repository,
                 "Repository directory (STILL_REPO; default: repository in the state directory)");
  app.add_option("--key-file", arguments.key_file, "File whose content opens the repository (STILL_KEY_FILE)");
  app.add_option("--max-running", arguments.max_running, "Runs at a time on this host")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--http", arguments.http, "Serve metrics and the status page, e.g. on 127.0.0.1:9841 (default: off)");
  app.add_option("--drain", arguments.drain, "At the end, wait this long for runs under way; they go on without us")
      ->capture_default_str();
  app.add_option("--notify-command", arguments.notify_command,
                 "Shell command for each alert (gets STILL_EVENT, STILL_JSON; STILL_NOTIFY_COMMAND)");
  app.add_option("--webhook", arguments.webhook, "URL that gets each alert as JSON (STILL_WEBHOOK)");
  app.add_option("--mail-to", arguments.mail_to, "Address that gets each alert by sendmail (STILL_MAIL_TO)");
  app.add_option("--ping", arguments.ping,
                 "URL that is called every five minutes while everything is as promised (STILL_PING)");
  app.add_option("--secret-fd", arguments.secret_fd)->group("");
  app.add_option("--execute", arguments.execute)->group("");
  app.add_option("--man", arguments.man_directory)->group("");
  app.add_option("--man-date", arguments.man_date)->group("");
}

// For the build.
absl::Status WriteManPage(const CLI::App& app, const Arguments& arguments) {
  for (const auto& [name, text] : cli::ManPages(cli::DescribeCommands(app), STILL_VERSION, arguments.man_date)) {
    STILL_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(arguments.man_directory, name), text));
  }
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments) {
  store::RepositoryOptions repository{.path = arguments.repository};
  if (repository.path.empty()) repository.path = JoinPath(arguments.state, "repository");
  STILL_ASSIGN_OR_RETURN(repository.here, ReadHostIdentity(arguments.state));
  STILL_ASSIGN_OR_RETURN(repository.credentials, cli::FindCredentials({.key_file = arguments.key_file,
                                                                       .secret_fd = arguments.secret_fd,
                                                                       .passphrase = arguments.passphrase}));
  if (arguments.execute > 0) {
    STILL_ASSIGN_OR_RETURN(std::string still, FindSibling("still", "STILL_PROGRAM"));
    return schedule::ExecuteRun({.state = arguments.state, .repository = repository, .still_program = still},
                                arguments.execute);
  }
  DaemonOptions options{.http = arguments.http};
  options.supervisor = {.state = arguments.state,
                        .repository = repository,
                        .max_running = arguments.max_running,
                        .daemon = true,
                        .without_repository = true};
  options.supervisor.announcer = schedule::AnnouncerOptions::FromEnvironment();
  schedule::AnnouncerOptions& announcer = options.supervisor.announcer;
  if (!arguments.notify_command.empty()) announcer.command = arguments.notify_command;
  if (!arguments.webhook.empty()) announcer.webhook = arguments.webhook;
  if (!arguments.mail_to.empty()) announcer.mail_to = arguments.mail_to;
  if (!arguments.ping.empty()) announcer.ping = arguments.ping;
  STILL_ASSIGN_OR_RETURN(options.supervisor.worker_program, FindSibling("stilld", "STILL_STILLD_PROGRAM"));
  STILL_ASSIGN_OR_RETURN(options.drain, ParseDuration(arguments.drain));
  return RunDaemon(options);
}

}  // namespace
}  // namespace still::daemon

int main(int argc, char** argv) {
  CLI::App app("Scheduled snapshots of Stillpoint: `still schedule` tells it what to do.", "stilld");
  still::daemon::Arguments arguments;
  still::daemon::AddOptions(app, arguments);
  CLI11_PARSE(app, argc, argv);
  still::SetLogLevel(still::LogLevel::kInfo);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // A file that would be longer than allowed is an error, too.
  if (arguments.execute == 0) {
    // Before there are threads: all of them inherit it, and one waits for them. A worker dies of them as usual, which is
    // harmless for its guest.
    sigset_t blocked;
    ::sigemptyset(&blocked);
    for (int signal : {SIGTERM, SIGINT, SIGUSR2}) ::sigaddset(&blocked, signal);
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  }
  absl::Status status =
      arguments.man_directory.empty() ? still::daemon::Run(arguments) : still::daemon::WriteManPage(app, arguments);
  if (!status.ok()) {
    still::LogError(arguments.execute == 0 ? "stilld ends" : "run failed", {{"error", status.ToString()}});
  }
  return still::ExitCode(status);
}
