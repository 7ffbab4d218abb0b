// What every command of `still` shares: the global options, how to reach repository and sessions, and how to print.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "session/control/session_registry.h"
#include "snapshot/progress.h"
#include "store/book/book.h"
#include "store/repository.h"

namespace still::cli {

struct RepositoryAccess {
  std::unique_ptr<store::Repository> repository;
  store::RepositoryOptions options;
};

class Context {
 public:
  // Adds the global options to the application.
  void AddOptions(CLI::App& app);

  bool json() const { return json_; }
  // The repository by --repo, STILL_REPO or the default; an encrypted one asks for its passphrase on the terminal when
  // none is given (STILL_PASSPHRASE, STILL_KEY_FILE, --key-file). Path and credentials are filled in here.
  absl::StatusOr<std::unique_ptr<store::Repository>> OpenRepository(store::RepositoryOptions options = {}) const;
  // The same, and how it was opened: for a program that has to open it again.
  absl::StatusOr<RepositoryAccess> OpenRepositoryWithAccess(store::RepositoryOptions options = {}) const;
  // The same without ever asking: for what nobody waits for, like completion.
  absl::StatusOr<std::unique_ptr<store::Repository>> OpenRepositoryQuietly() const;
  // The state directory's book, with what an older version kept in this repository's catalog.
  absl::StatusOr<std::unique_ptr<store::Book>> OpenBook(const store::Repository& repository) const;
  const std::string& repository_path() const { return repository_; }
  absl::StatusOr<store::Credentials> GivenCredentials() const;
  session::SessionRegistry sessions() const { return session::SessionRegistry(state_); }
  const std::string& state_directory() const { return state_; }

  // Standard input is what the command reads: a passphrase is then asked on the terminal beside it.
  void set_input_is_data() { input_is_data_ = true; }

  // Takes --state, --repo and --key-file from words that are not parsed: those of a command line being written.
  void ReadGlobalOptions(const std::vector<std::string>& words);

  // A bar on a terminal, a line a stage elsewhere, nothing with --json or --quiet. Finish with ProgressDone().
  snapshot::ProgressSink MakeProgress();
  void ProgressDone();

  // Prints `json` with --json, else what `text` prints. A string that is no UTF-8 is escaped (base/names.h); a path is best
  // escaped by whoever knows that it is one, so that its reader gets the bytes back in any case.
  void Print(const nlohmann::json& json, const std::function<void()>& text) const;

  // A command's body: what it returns becomes the exit code, its message one line on stderr.
  using Body = std::function<absl::Status(Context&)>;
  // Adds a command and returns it, for its options. `body` runs when it was chosen.
  CLI::App* AddCommand(CLI::App& app, const std::string& name, const std::string& description, Body body);
  // For programs, not for people: not in --help.
  CLI::App* AddHiddenCommand(CLI::App& app, const std::string& name, const std::string& description, Body body);
  // Runs the body of the command that `app` has parsed. Options of kSessionType (command_tree.h) have their names
  // resolved first: a unique beginning is enough.
  absl::Status RunChosen(CLI::App& app);

  // The exit code of a program run in the guest; replaces ours when there was no error.
  void set_exit_code(int code) { exit_code_ = code; }
  int exit_code() const { return exit_code_; }
  // Print() has written a document: after it an error must not, or neither can be read.
  bool printed_json() const { return printed_json_; }

 private:
  absl::Status ResolveSessions(CLI::App& app) const;
  // What a person gives is stored and sent as text: all of it is UTF-8, but for paths.
  absl::Status CheckWords(CLI::App& app) const;
  absl::Status CheckPlaces() const;

  std::string repository_;
  std::string state_;
  std::string key_file_;
  std::string passphrase_;  // Of the environment, which does not have it any more.
  int secret_fd_ = -1;      // What stilld's workers give instead.
  bool json_ = false;
  mutable bool printed_json_ = false;
  bool quiet_ = false;
  bool input_is_data_ = false;
  int exit_code_ = 0;
  Body chosen_;
  std::shared_ptr<class ProgressBar> bar_;
};

// Reads a passphrase from the terminal without echo, which is as it was afterwards, also when a signal ends or stops the
// process meanwhile. FAILED_PRECONDITION without a terminal. `input_is_data`: the terminal is not standard input, but that
// of the process.
absl::StatusOr<std::string> AskPassphrase(const std::string& prompt, bool input_is_data = false);

// The commands, one file each group.
void AddRepositoryCommands(CLI::App& app, Context& context);  // init, verify, repair, stats, key
void AddSessionCommands(CLI::App& app, Context& context);     // run, ps, exec, logs, resume, thaw
void AddPowerCommands(CLI::App& app, Context& context);       // start, stop, rm
void AddSnapshotCommands(CLI::App& app, Context& context);    // snapshot, list, show, prune, diff
void AddForgetCommands(CLI::App& app, Context& context);      // forget, hold, release
void AddRestoreCommands(CLI::App& app, Context& context);     // restore, rollback, hot
void AddTransferCommands(CLI::App& app, Context& context);    // import, export
void AddServeCommand(CLI::App& app, Context& context);        // serve
void AddHydrateCommand(CLI::App& app, Context& context);      // hydrate
void AddMountCommands(CLI::App& app, Context& context);       // mount, umount
void AddFileCommands(CLI::App& app, Context& context);        // ls, cp
void AddScheduleCommands(CLI::App& app, Context& context);    // schedule ...
void AddSetupCommand(CLI::App& app, Context& context);        // setup
void AddDrillCommands(CLI::App& app, Context& context);       // drill; hidden: __janitor
void AddAgentCommands(CLI::App& app, Context& context);       // agent install
void AddDoctorCommand(CLI::App& app, Context& context);       // doctor
void AddCompletionCommands(CLI::App& app, Context& context);  // completion; hidden: __complete, __man

}  // namespace still::cli
