// still: the command.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/man_page.h"
#include "tools/still/standard_streams.h"

namespace {

// What could not be printed was not done: `code` if all was, or the command had failed already.
int EndOutput(int code) {
  const int error_number = still::cli::FlushStandardOutput();
  if (error_number == 0) return code;
  // Whoever read it has seen enough, and a pipeline says no more about that.
  if (error_number == EPIPE) return code != 0 ? code : 128 + SIGPIPE;
  const absl::Status status = still::ErrnoStatus(error_number, "write standard output");
  std::cerr << "still: " << status.message() << "\n";
  return code != 0 ? code : still::ExitCode(status);
}

}  // namespace

int main(int argc, char** argv) {
  // A repository or a session that goes away is an error of the call that meets it.
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGXFSZ, SIG_IGN);  // Likewise a file that would be longer than allowed.
  still::cli::PrepareStandardStreams();
  CLI::App app("Consistent snapshots of running virtual machines.", "still");
  app.set_version_flag("--version", "still " STILL_VERSION);
  app.require_subcommand(1);
  still::cli::Context context;
  context.AddOptions(app);
  still::cli::AddRepositoryCommands(app, context);
  still::cli::AddSessionCommands(app, context);
  still::cli::AddPowerCommands(app, context);
  still::cli::AddSnapshotCommands(app, context);
  still::cli::AddRestoreCommands(app, context);
  still::cli::AddForgetCommands(app, context);
  still::cli::AddScheduleCommands(app, context);
  still::cli::AddSetupCommand(app, context);
  still::cli::AddTransferCommands(app, context);
  still::cli::AddServeCommand(app, context);
  still::cli::AddHydrateCommand(app, context);
  still::cli::AddMountCommands(app, context);
  still::cli::AddFileCommands(app, context);
  still::cli::AddDrillCommands(app, context);
  still::cli::AddAgentCommands(app, context);
  still::cli::AddDoctorCommand(app, context);
  still::cli::AddCompletionCommands(app, context);
  app.footer(still::cli::CommonSections());
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // Usage errors get the code of their class (docs/operations.md); --help and --version are no errors.
    if (error.get_exit_code() == 0) return EndOutput(app.exit(error));
    std::cerr << "still: " << still::cli::UsageError(app, error) << "\n";
    return still::ExitCode(absl::InvalidArgumentError(""));
  }
  absl::Status status = context.RunChosen(app);
  if (status.ok()) return EndOutput(context.exit_code());
  // Errors quote what guests, files and other programs say.
  const std::string message = still::cli::Printable(std::string(status.message()));
  if (context.json() && !context.printed_json()) {
    nlohmann::json error = {{"error", {{"code", absl::StatusCodeToString(status.code())}, {"message", message}}}};
    std::cout << error.dump(2) << "\n";
  }
  std::cerr << "still: " << message << "\n";
  return EndOutput(still::ExitCode(status));
}
