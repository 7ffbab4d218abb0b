// setup: from the installed package to the first nightly schedule.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/absolute_path.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/random.h"
#include "schedule/announcements.h"
#include "schedule/supervisor.h"
#include "tools/still/command_tree.h"
#include "tools/still/configuration.h"
#include "tools/still/context.h"
#include "tools/still/credentials.h"
#include "tools/still/format.h"
#include "tools/still/schedule_client.h"
#include "tools/still/schedule_options.h"
#include "tools/still/setup/host_files.h"

namespace still::cli {
namespace {

namespace pb = ::stillpoint::schedule::v1;
using Stub = ScheduleControl::Stub;

constexpr absl::Duration kSystemctlTimeout = absl::Minutes(3);
constexpr size_t kGeneratedBytes = 24;
// Does without stilld what stilld does.
constexpr char kRunDueTimer[] = "still-run-due.timer";
constexpr char kDefaultOn[] = "*-*-* 02:00";
constexpr char kDefaultSpread[] = "2h";
constexpr char kDefaultRetention[] = "daily=7 weekly=4 monthly=6";

struct SetupArguments {
  bool no_encryption = false;
  bool generate_passphrase = false;
  std::string passphrase_file;
  std::string webhook;
  std::string notify_command;
  std::string mail_to;
  std::string ping;
  std::string schedule = "nightly";
  bool no_schedule = false;
  bool no_units = false;
  bool test_alert = false;
};

absl::StatusOr<std::string> RunTool(std::vector<std::string> argv) {
  const std::string words = absl::StrJoin(argv, " ");
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand({.argv = std::move(argv)}, kSystemctlTimeout));
  if (output.exit.ok()) return output.stdout_text;
  return absl::FailedPreconditionError(absl::StrCat(words, ": ", output.exit.ToString(), " ", output.stderr_text));
}

class Setup {
 public:
  Setup(Context& context, const SetupArguments& arguments, const ScheduleOptions& schedule)
      : context_(context), arguments_(arguments), schedule_(schedule), files_(HostFiles::Places()) {}

  absl::Status Run() {
    STILL_RETURN_IF_ERROR(HostFiles::CheckRepository(context_.repository_path()));
    STILL_RETURN_IF_ERROR(FindCredentials());
    STILL_RETURN_IF_ERROR(MakeRepository());
    STILL_RETURN_IF_ERROR(WriteFiles());
    STILL_RETURN_IF_ERROR(StartUnits());
    STILL_RETURN_IF_ERROR(AddSchedule());
    return SendTestAlert();
  }
  // Also of what was done before an error.
  void Print() const;

 private:
  absl::Status FindCredentials();
  absl::StatusOr<std::string> NewPassphrase();
  absl::Status MakeRepository();
  absl::Status WriteFiles();
  absl::Status StartUnits();
  absl::Status AddSchedule();
  absl::Status SendTestAlert();
  absl::Status Note(absl::StatusOr<SetupStep> step);

  Context& context_;
  const SetupArguments& arguments_;
  const ScheduleOptions& schedule_;
  const HostFiles files_;
  store::Credentials credentials_;
  std::string generated_;  // The passphrase that was made up.
  std::vector<SetupStep> steps_;
};

absl::Status Setup::Note(absl::StatusOr<SetupStep> step) {
  if (!step.ok()) return step.status();
  steps_.push_back(*std::move(step));
  return absl::OkStatus();
}

absl::StatusOr<std::string> Setup::NewPassphrase() {
  if (arguments_.generate_passphrase) {
    std::string bytes(kGeneratedBytes, '\0');
    RandomBytes(bytes.data(), bytes.size());
    generated_ = absl::WebSafeBase64Escape(bytes);
    return generated_;
  }
  STILL_ASSIGN_OR_RETURN(std::string passphrase,
                         AskPassphrase(absl::StrCat("Passphrase of ", context_.repository_path(), ": ")));
  if (PathExists(JoinPath(context_.repository_path(), "config"))) return passphrase;
  STILL_ASSIGN_OR_RETURN(std::string again, AskPassphrase("Once more: "));
  if (again != passphrase) return absl::InvalidArgumentError("the two passphrases differ");
  return passphrase;
}

absl::Status Setup::FindCredentials() {
  if (arguments_.no_encryption) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(credentials_, context_.GivenCredentials());
  // Services are given it too, and have another working directory.
  STILL_ASSIGN_OR_RETURN(credentials_.key_file, AbsolutePath(credentials_.key_file));
  if (!arguments_.passphrase_file.empty()) {
    STILL_ASSIGN_OR_RETURN(credentials_.passphrase, ReadPassphraseFile(arguments_.passphrase_file));
  }
  if (!credentials_.empty()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(std::optional<std::string> stored, files_.StoredPassphrase());
  if (stored.has_value()) {
    credentials_.passphrase = *std::move(stored);
    return absl::OkStatus();
  }
  // An unencrypted one that is there already needs none.
  if (store::Repository::Open({.path = context_.repository_path()}).ok()) return absl::OkStatus();
  if (arguments_.generate_passphrase && PathExists(JoinPath(context_.repository_path(), "config"))) {
    return absl::FailedPreconditionError(
        absl::StrCat("repository ", context_.repository_path(),
                     " has a passphrase already: give it by --passphrase-file or STILL_PASSPHRASE"));
  }
  STILL_ASSIGN_OR_RETURN(credentials_.passphrase, NewPassphrase());
  return absl::OkStatus();
}

absl::Status Setup::MakeRepository() {
  SetupStep step{.what = "repository"};
  store::RepositoryOptions options{.path = context_.repository_path(), .credentials = credentials_};
  STILL_RETURN_IF_ERROR(MakeDirectories(context_.state_directory()));
  absl::Status made = store::Repository::Init(options);
  step.changed = made.ok();
  // There already: whoever opens it is not shut out by what we go on to store.
  absl::StatusOr<std::unique_ptr<store::Repository>> opened = store::Repository::Open(options);
  if (!opened.ok()) return step.changed || !PathExists(JoinPath(options.path, "config")) ? made : opened.status();
  if (!(*opened)->encrypted() && (arguments_.generate_passphrase || !arguments_.passphrase_file.empty())) {
    return absl::FailedPreconditionError(absl::StrCat(
        "repository ", options.path, " is there already, without encryption, and cannot be encrypted later: ",
        "give another place by --repo, or no passphrase"));
  }
  step.detail = absl::StrCat(options.path, (*opened)->encrypted() ? ", encrypted" : ", WITHOUT encryption");
  return Note(std::move(step));
}

absl::Status Setup::WriteFiles() {
  const std::string usual = JoinPath(context_.state_directory(), "repository");
  const bool elsewhere = context_.repository_path() != usual;
  if (!credentials_.passphrase.empty()) STILL_RETURN_IF_ERROR(Note(files_.StorePassphrase(credentials_.passphrase)));
  STILL_RETURN_IF_ERROR(Note(files_.Configure({.repository = elsewhere ? context_.repository_path() : "",
                                               .key_file = credentials_.passphrase.empty() ? credentials_.key_file : "",
                                               .webhook = arguments_.webhook,
                                               .notify_command = arguments_.notify_command,
                                               .mail_to = arguments_.mail_to,
                                               .ping = arguments_.ping})));
  if (elsewhere) STILL_RETURN_IF_ERROR(Note(files_.AllowWriting(context_.repository_path())));
  return absl::OkStatus();
}

absl::Status Setup::StartUnits() {
  if (arguments_.no_units) return absl::OkStatus();
  SetupStep step{.what = "units", .changed = false};
  if (!PathExists("/run/systemd/system")) {
    step.detail = "no systemd here: start stilld yourself, or `still schedule run-due` every minute";
    return Note(std::move(step));
  }
  const std::vector<std::string> units = {"stilld.socket", "stilld.service", "still-check.timer"};
  for (const std::string& unit : units) {
    // Exit code 0: it is so.
    absl::StatusOr<std::string> on = RunTool({"systemctl", "--quiet", "is-enabled", unit});
    absl::StatusOr<std::string> runs = RunTool({"systemctl", "--quiet", "is-active", unit});
    step.changed |= !on.ok() || !runs.ok();
  }
  // Its service ends stilld, and stilld does its work.
  if (RunTool({"systemctl", "--quiet", "is-enabled", kRunDueTimer}).ok() ||
      RunTool({"systemctl", "--quiet", "is-active", kRunDueTimer}).ok()) {
    STILL_RETURN_IF_ERROR(RunTool({"systemctl", "disable", "--now", kRunDueTimer}).status());
    step.changed = true;
  }
  bool configured = false;
  for (const SetupStep& done : steps_) configured |= done.changed;
  if (step.changed || configured) {
    STILL_RETURN_IF_ERROR(RunTool({"systemctl", "daemon-reload"}).status());
    std::vector<std::string> enable = {"systemctl", "enable", "--now"};
    enable.insert(enable.end(), units.begin(), units.end());
    STILL_RETURN_IF_ERROR(RunTool(std::move(enable)).status());
  }
  // One that ran already has the old configuration. It comes back when it is ready, or tells why not.
  if (configured) {
    STILL_RETURN_IF_ERROR(
        Annotate(RunTool({"systemctl", "restart", "stilld.service"}).status(), "see `journalctl -u stilld`"));
  }
  step.detail = absl::StrCat(absl::StrJoin(units, " "), ": enabled, running");
  return Note(std::move(step));
}

absl::Status Setup::AddSchedule() {
  if (arguments_.no_schedule) return absl::OkStatus();
  SetupStep step{.what = "schedule"};
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ScheduleClient> client, ScheduleClient::Connect(context_));
  STILL_ASSIGN_OR_RETURN(pb::ScheduleList list, client->Call(&Stub::List, pb::ListRequest()));
  for (const auto& entry : list.schedules()) {
    if (entry.schedule().name() == arguments_.schedule) step.changed = false;
  }
  if (step.changed) {
    pb::Schedule schedule;
    schedule.set_name(arguments_.schedule);
    schedule.set_retries(kDefaultRetries);
    STILL_RETURN_IF_ERROR(schedule_.Apply(schedule));
    if (schedule.sessions().empty()) schedule.add_sessions("*");
    if (schedule.calendar().empty() && schedule.every().empty()) {
      schedule.add_calendar(kDefaultOn);
      if (schedule.spread().empty()) schedule.set_spread(kDefaultSpread);
    }
    if (schedule.retention().empty()) schedule.set_retention(kDefaultRetention);
    STILL_RETURN_IF_ERROR(client->Call(&Stub::Add, schedule).status());
  }
  pb::ListRequest named;
  named.set_name(arguments_.schedule);
  STILL_ASSIGN_OR_RETURN(list, client->Call(&Stub::List, named));
  const auto& entry = list.schedules(0);
  step.detail = absl::StrCat(arguments_.schedule, ": ",
                             entry.schedule().every().empty() ? absl::StrJoin(entry.schedule().calendar(), "; ")
                                                              : absl::StrCat("every ", entry.schedule().every()),
                             ", next ", entry.next_unix_ns() == 0 ? "never" : FormatUnixNanos(entry.next_unix_ns()));
  return Note(std::move(step));
}

// A channel that nobody has tried is one that fails on the worst day of the year.
absl::Status Setup::SendTestAlert() {
  const schedule::AnnouncerOptions channels{
      .command = arguments_.notify_command, .webhook = arguments_.webhook, .mail_to = arguments_.mail_to};
  SetupStep step{.what = "test alert", .changed = false};
  if (channels.command.empty() && channels.webhook.empty() && channels.mail_to.empty()) {
    step.detail =
        "not sent: no --webhook, --notify-command or --mail-to was given; without any, alerts are in the journal only";
    return Note(std::move(step));
  }
  const bool new_channels = std::any_of(
      steps_.begin(), steps_.end(), [](const SetupStep& done) { return done.what == "configuration" && done.changed; });
  if (!new_channels && !arguments_.test_alert) {
    step.detail = "not sent: the channels are as they were (--test-alert sends one)";
    return Note(std::move(step));
  }
  const std::vector<schedule::Announcer::Outcome> outcomes = schedule::TellOnce(
      channels, {.kind = schedule::Event::Kind::kTest,
                 .at = Clock::Real().Now(),
                 .message = "this is a test: `still setup` wants to know whether alerts of this host arrive"});
  std::vector<std::string> failed;
  std::vector<std::string> taken;
  for (const auto& outcome : outcomes) (outcome.delivered ? taken : failed).push_back(outcome.channel);
  if (!failed.empty()) {
    return absl::UnavailableError(
        absl::StrCat("everything is set up, but the test alert was not taken by: ", absl::StrJoin(failed, ", "),
                     "; mend the channel, and try it with `still setup --test-alert` and the same options"));
  }
  step.changed = true;
  step.detail = absl::StrCat("taken by ", absl::StrJoin(taken, ", "), "; look whether you see it");
  return Note(std::move(step));
}

void Setup::Print() const {
  nlohmann::json json = {{"steps", nlohmann::json::array()}};
  for (const SetupStep& step : steps_) {
    json["steps"].push_back({{"what", step.what}, {"changed", step.changed}, {"detail", step.detail}});
  }
  if (!generated_.empty()) json["passphrase"] = generated_;
  context_.Print(json, [&] {
    for (const SetupStep& step : steps_) {
      std::cout << (step.changed ? "done   " : "there  ") << step.what << ": " << step.detail << "\n";
    }
    if (generated_.empty()) return;
    std::cout << "\nThe passphrase of the repository is\n\n    " << generated_
              << "\n\nThis host keeps it for itself. Write it down elsewhere: on another host nothing can be read "
                 "without it.\n";
  });
}

absl::Status RunSetup(Context& context, const SetupArguments& arguments, const ScheduleOptions& schedule) {
  if (!std::filesystem::path(context.repository_path()).is_absolute()) {
    return absl::InvalidArgumentError("the repository's path must be absolute: a service has no working directory");
  }
  if (!arguments.no_units && context.state_directory() != kServiceState) {
    return absl::InvalidArgumentError(
        absl::StrCat("the units work on ", kServiceState, ", not on ", context.state_directory(),
                     ": leave --state and STILL_STATE out, or give --no-units and start stilld yourself"));
  }
  if (::geteuid() != 0) return absl::PermissionDeniedError("setup writes to /etc and enables units: run it as root");
  Setup setup(context, arguments, schedule);
  absl::Status done = setup.Run();
  setup.Print();
  return done;
}

}  // namespace

void AddSetupCommand(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<SetupArguments>();
  auto schedule = std::make_shared<ScheduleOptions>();
  CLI::App* setup = context.AddCommand(
      app, "setup", "Make this host take snapshots every night: repository, passphrase, stilld, a schedule",
      [=](Context& c) { return RunSetup(c, *arguments, *schedule); });
  CLI::Option* plain =
      setup->add_flag("--no-encryption", arguments->no_encryption, "A repository that whoever has the disk can read");
  setup->add_flag("--generate-passphrase", arguments->generate_passphrase, "Make one up and show it, once")
      ->excludes(plain);
  setup->add_option("--passphrase-file", arguments->passphrase_file, "Read it from here (or STILL_PASSPHRASE)")
      ->type_name(kFileType)
      ->excludes(plain);
  setup->add_option("--webhook", arguments->webhook, "URL that gets each alert as JSON");
  setup->add_option("--notify-command", arguments->notify_command, "Shell command for each alert");
  setup->add_option("--mail-to", arguments->mail_to, "Address that gets each alert by sendmail");
  setup->add_option("--ping", arguments->ping, "URL that is called while everything is as promised");
  setup->add_option("--schedule", arguments->schedule, "Name of the schedule")->capture_default_str();
  setup->add_flag("--no-schedule", arguments->no_schedule, "Add none");
  setup->add_flag("--no-units", arguments->no_units, "Write the files, and start nothing");
  setup->add_flag("--test-alert", arguments->test_alert, "Send a test alert, also when the channels are as they were");
  schedule->AddTo(*setup);
}

}  // namespace still::cli
