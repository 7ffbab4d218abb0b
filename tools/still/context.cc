#include "tools/still/context.h"

#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/home_directory.h"
#include "base/host_identity.h"
#include "base/name_match.h"
#include "base/names.h"
#include "base/secret.h"
#include "schedule/stored_book.h"
#include "tools/still/choose.h"
#include "tools/still/command_tree.h"
#include "tools/still/configuration.h"
#include "tools/still/credentials.h"
#include "tools/still/progress_bar.h"

namespace still::cli {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// JSON is UTF-8, and what guests, files and other programs say need not be. Escaped it can still be told apart.
nlohmann::json Readable(nlohmann::json json) {
  if (json.is_structured()) {
    for (nlohmann::json& member : json) member = Readable(std::move(member));
  } else if (json.is_string() && !IsUtf8(json.get_ref<const std::string&>())) {
    json = EscapeName(json.get_ref<const std::string&>());
  }
  return json;
}

}  // namespace

void Context::AddOptions(CLI::App& app) {
  state_ = DefaultStateDirectory();
  repository_ = Environment("STILL_REPO");
  passphrase_ = TakeSecretVariable("STILL_PASSPHRASE");
  app.add_option("--repo", repository_,
                 "Repository directory (STILL_REPO; default: the service's, else repository in the state directory)")
      ->type_name(kDirectoryType);
  // What is the default here depends on who asks; the man page has one for all.
  app.add_option("--state", state_,
                 "Where sessions live (STILL_STATE; default: /var/lib/stillpoint for root, else stillpoint in "
                 "XDG_STATE_HOME)")
      ->type_name(kDirectoryType);
  app.add_option("--key-file", key_file_, "File whose content opens the repository (STILL_KEY_FILE)")
      ->type_name(kFileType);
  app.add_option("--secret-fd", secret_fd_, "Descriptor of the passphrase")->group("");
  app.add_flag("--json", json_, "Print JSON");
  app.add_flag("--quiet,-q", quiet_, "No progress");
  // Options may also stand behind the command.
  app.fallthrough();
}

absl::StatusOr<store::Credentials> Context::GivenCredentials() const {
  return FindCredentials({.key_file = key_file_, .secret_fd = secret_fd_, .passphrase = passphrase_});
}

absl::StatusOr<std::unique_ptr<store::Repository>> Context::OpenRepositoryQuietly() const {
  store::RepositoryOptions options{.path = repository_};
  STILL_ASSIGN_OR_RETURN(options.here, ReadHostIdentity(state_));
  STILL_ASSIGN_OR_RETURN(options.credentials, GivenCredentials());
  return store::Repository::Open(options);
}

absl::StatusOr<std::unique_ptr<store::Repository>> Context::OpenRepository(store::RepositoryOptions options) const {
  STILL_ASSIGN_OR_RETURN(RepositoryAccess access, OpenRepositoryWithAccess(std::move(options)));
  return std::move(access.repository);
}

absl::StatusOr<RepositoryAccess> Context::OpenRepositoryWithAccess(store::RepositoryOptions options) const {
  RepositoryAccess access{.repository = nullptr, .options = std::move(options)};
  access.options.path = repository_;
  STILL_ASSIGN_OR_RETURN(access.options.here, ReadHostIdentity(state_));
  STILL_ASSIGN_OR_RETURN(access.options.credentials, GivenCredentials());
  absl::StatusOr<std::unique_ptr<store::Repository>> opened = store::Repository::Open(access.options);
  if (absl::IsUnauthenticated(opened.status()) && access.options.credentials.empty()) {
    STILL_ASSIGN_OR_RETURN(access.options.credentials.passphrase,
                           AskPassphrase(absl::StrCat("Passphrase of ", repository_, ": "), input_is_data_));
    opened = store::Repository::Open(access.options);
  }
  if (!opened.ok()) return opened.status();
  access.repository = *std::move(opened);
  return access;
}

absl::StatusOr<std::unique_ptr<store::Book>> Context::OpenBook(const store::Repository& repository) const {
  return schedule::OpenBook(state_, repository_, repository);
}

snapshot::ProgressSink Context::MakeProgress() {
  if (json_ || quiet_) return [](const snapshot::Progress&) {};
  bar_ = std::make_shared<ProgressBar>(STDERR_FILENO);
  return [bar = bar_](const snapshot::Progress& progress) { bar->Update(progress); };
}

void Context::ProgressDone() {
  if (bar_ != nullptr) bar_->Finish();
  bar_.reset();
}

void Context::Print(const nlohmann::json& json, const std::function<void()>& text) const {
  if (json_) {
    printed_json_ = true;
    std::cout << Readable(json).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else {
    text();
  }
}

CLI::App* Context::AddCommand(CLI::App& app, const std::string& name, const std::string& description, Body body) {
  CLI::App* command = app.add_subcommand(name, description);
  command->callback([this, body = std::move(body)] { chosen_ = body; });
  return command;
}

CLI::App* Context::AddHiddenCommand(CLI::App& app, const std::string& name, const std::string& description, Body body) {
  return AddCommand(app, name, description, std::move(body))->group("");
}

void Context::ReadGlobalOptions(const std::vector<std::string>& words) {
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == "--state") state_ = words[i + 1];
    if (words[i] == "--repo") repository_ = words[i + 1];
    if (words[i] == "--key-file") key_file_ = words[i + 1];
  }
  repository_ = ChooseRepository(repository_, state_);
}

absl::Status Context::ResolveSessions(CLI::App& app) const {
  for (CLI::App* command : app.get_subcommands()) {
    for (CLI::Option* option : command->get_options()) {
      if (option->get_type_name() != kSessionType || option->count() == 0) continue;
      std::vector<std::string> names = option->results();
      for (std::string& name : names) {
        STILL_RETURN_IF_ERROR(ExpectOneSession(name));
        STILL_ASSIGN_OR_RETURN(name, sessions().Resolve(name));
      }
      option->clear();
      option->add_result(names);
      option->run_callback();
    }
    STILL_RETURN_IF_ERROR(ResolveSessions(*command));
  }
  return absl::OkStatus();
}

absl::Status Context::CheckWords(CLI::App& app) const {
  for (CLI::App* command : app.get_subcommands()) {
    for (const CLI::Option* option : command->get_options()) {
      const std::string type = option->get_type_name();
      if (type == kFileType || type == kDirectoryType || type == kGuestPathType) continue;
      for (const std::string& word : option->results()) {
        if (IsUtf8(word)) continue;
        return absl::InvalidArgumentError(absl::StrCat(
            option->get_name(), " ", Quoted(word), ": it is not UTF-8, and could not be stored; write it in UTF-8"));
      }
    }
    STILL_RETURN_IF_ERROR(CheckWords(*command));
  }
  return absl::OkStatus();
}

absl::Status Context::CheckPlaces() const {
  if (state_.empty()) {
    return absl::FailedPreconditionError(
        "this user has no home directory; say where sessions live: --state or STILL_STATE");
  }
  if (IsUtf8(state_)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("state directory ", Quoted(state_),
                                                 ": it is not UTF-8, and sessions store their paths; choose another"));
}

absl::Status Context::RunChosen(CLI::App& app) {
  STILL_RETURN_IF_ERROR(CheckPlaces());
  STILL_RETURN_IF_ERROR(CheckWords(app));
  repository_ = ChooseRepository(repository_, state_);
  STILL_RETURN_IF_ERROR(ResolveSessions(app));
  absl::Status status = chosen_(*this);
  ProgressDone();
  return status;
}

}  // namespace still::cli
