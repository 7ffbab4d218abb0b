#include "tools/still/setup/host_files.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/name_match.h"
#include "base/names.h"
#include "base/pipe.h"
#include "base/process.h"
#include "tools/still/credentials.h"

namespace still::cli {
namespace {

constexpr absl::string_view kUnits[] = {"stilld.service", "still-check.service", "still-run-due.service"};
constexpr char kSealedFile[] = "passphrase.cred";
constexpr char kPlainFile[] = "passphrase";
constexpr char kDropIn[] = "passphrase.conf";
constexpr char kEnvironmentFile[] = "stilld.env";
// Files that people write; nobody writes more.
constexpr size_t kLongestFile = 1 << 20;
constexpr absl::Duration kProgramTimeout = absl::Minutes(1);

absl::StatusOr<std::string> ReadIfThere(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kLongestFile);
  if (absl::IsNotFound(text.status())) return std::string();
  return text;
}

// What the program prints; `input` is its standard input, short enough for a pipe.
absl::StatusOr<std::string> RunWithInput(std::vector<std::string> argv, const std::string& input) {
  STILL_ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
  STILL_RETURN_IF_ERROR(WriteAll(pipe.write_end.get(), input.data(), input.size(), "pipe"));
  pipe.write_end.Reset();
  const std::string name = argv[0];
  ProcessOptions options{.argv = std::move(argv), .stdin_fd = pipe.read_end.get()};
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand(std::move(options), kProgramTimeout));
  if (output.exit.ok()) return output.stdout_text;
  return absl::FailedPreconditionError(absl::StrCat(name, ": ", output.exit.ToString(), " ", output.stderr_text));
}

// systemd leaves out lines that are no UTF-8, with nothing but a line in the journal.
absl::Status CheckValue(absl::string_view option, const std::string& value) {
  if (!IsUtf8(value)) {
    return absl::InvalidArgumentError(absl::StrCat(
        option, " ", Quoted(value), ": it is not UTF-8, and a configuration file of systemd is; choose another"));
  }
  if (value.find_first_of("\n\"\\") == std::string::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(option, " ", Quoted(value),
                                                 ": a configuration file takes no quotes, backslashes or line ends; "
                                                 "choose another path, or put a command into a script"));
}

}  // namespace

absl::Status HostFiles::CheckRepository(const std::string& path) {
  STILL_RETURN_IF_ERROR(CheckValue("repository", path));
  if (!absl::StrContains(path, '%')) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("repository ", Quoted(path), ": a unit of systemd cannot name a path with %; choose another"));
}

std::string HostFiles::ConfigurationPath(absl::string_view name) const { return JoinPath(places_.configuration, name); }

absl::StatusOr<std::optional<std::string>> HostFiles::StoredPassphrase() const {
  if (const std::string sealed = ConfigurationPath(kSealedFile); PathExists(sealed)) {
    STILL_ASSIGN_OR_RETURN(
        std::string passphrase,
        RunWithInput({places_.systemd_creds, "decrypt", absl::StrCat("--name=", kPassphraseCredential), sealed, "-"},
                     ""));
    return passphrase;
  }
  if (const std::string plain = ConfigurationPath(kPlainFile); PathExists(plain)) {
    STILL_ASSIGN_OR_RETURN(std::string passphrase, ReadPassphraseFile(plain));
    return passphrase;
  }
  return std::nullopt;
}

absl::StatusOr<SetupStep> HostFiles::StorePassphrase(const std::string& passphrase) const {
  SetupStep step{.what = "passphrase"};
  const std::string sealed = ConfigurationPath(kSealedFile);
  const std::string plain = ConfigurationPath(kPlainFile);
  STILL_ASSIGN_OR_RETURN(std::optional<std::string> stored, StoredPassphrase());
  step.changed = stored != passphrase;
  STILL_RETURN_IF_ERROR(MakeDirectories(places_.configuration, 0755));
  std::string load;
  absl::StatusOr<std::string> encrypted = absl::UnavailableError("there is no systemd-creds");
  if (!step.changed && PathExists(sealed)) {
    encrypted = std::string();
  } else {
    encrypted = RunWithInput(
        {places_.systemd_creds, "encrypt", absl::StrCat("--name=", kPassphraseCredential), "-", "-"}, passphrase);
    if (encrypted.ok()) STILL_RETURN_IF_ERROR(WriteFileAtomically(sealed, *encrypted, 0600));
  }
  if (encrypted.ok()) {
    load = absl::StrCat("LoadCredentialEncrypted=", kPassphraseCredential, ":", sealed);
    step.detail = absl::StrCat(sealed, ", encrypted for this host by systemd-creds");
    // One place, or they can differ.
    STILL_RETURN_IF_ERROR(RemoveFile(plain));
  } else {
    STILL_RETURN_IF_ERROR(RemoveFile(sealed));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(plain, absl::StrCat(passphrase, "\n"), 0600));
    load = absl::StrCat("LoadCredential=", kPassphraseCredential, ":", plain);
    step.detail = absl::StrCat(plain, ", which only root can read; not encrypted: ", encrypted.status().message());
  }
  STILL_ASSIGN_OR_RETURN(bool written, WriteDropIns(kDropIn, absl::StrCat("[Service]\n", load, "\n")));
  step.changed |= written;
  return step;
}

absl::StatusOr<SetupStep> HostFiles::Configure(const Settings& settings) const {
  SetupStep step{.what = "configuration", .changed = false, .detail = ConfigurationPath("stilld.conf")};
  const struct {
    const char* option;
    const char* variable;
    const std::string& value;
  } kLines[] = {{"repo", "STILL_REPO", settings.repository},
                {"key-file", "STILL_KEY_FILE", settings.key_file},
                {"webhook", "STILL_WEBHOOK", settings.webhook},
                {"notify-command", "STILL_NOTIFY_COMMAND", settings.notify_command},
                {"mail-to", "STILL_MAIL_TO", settings.mail_to},
                {"ping", "STILL_PING", settings.ping}};
  // All of them first: what is refused has changed nothing.
  for (const auto& line : kLines) STILL_RETURN_IF_ERROR(CheckValue(line.option, line.value));
  for (const auto& line : kLines) {
    if (line.value.empty()) continue;
    // CLI11's files take quoted values, systemd's EnvironmentFile= as well.
    const std::string value = absl::StrCat("\"", line.value, "\"");
    STILL_ASSIGN_OR_RETURN(bool conf, SetLine(ConfigurationPath("stilld.conf"), line.option, value, 0644));
    STILL_ASSIGN_OR_RETURN(bool env, SetLine(ConfigurationPath(kEnvironmentFile), line.variable, value, 0600));
    step.changed |= conf || env;
  }
  return step;
}

absl::StatusOr<SetupStep> HostFiles::AllowWriting(const std::string& directory) const {
  SetupStep step{.what = "write access", .detail = directory};
  STILL_RETURN_IF_ERROR(CheckRepository(directory));
  // "-": without it no unit starts while the directory is missing, not even the one that tells.
  STILL_ASSIGN_OR_RETURN(
      step.changed, WriteDropIns("repository.conf", absl::StrCat("[Service]\nReadWritePaths=\"-", directory, "\"\n")));
  return step;
}

absl::StatusOr<bool> HostFiles::WriteDropIns(absl::string_view name, absl::string_view content) const {
  bool changed = false;
  for (absl::string_view unit : kUnits) {
    const std::string directory = JoinPath(places_.units, absl::StrCat(unit, ".d"));
    const std::string path = JoinPath(directory, name);
    STILL_ASSIGN_OR_RETURN(std::string there, ReadIfThere(path));
    const std::string wanted = absl::StrCat("# Written by `still setup`.\n", content);
    if (there == wanted) continue;
    STILL_RETURN_IF_ERROR(MakeDirectories(directory, 0755));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(path, wanted, 0644));
    changed = true;
  }
  return changed;
}

absl::StatusOr<bool> HostFiles::SetLine(const std::string& path, absl::string_view name, absl::string_view value,
                                        int mode) const {
  STILL_ASSIGN_OR_RETURN(std::string text, ReadIfThere(path));
  const std::string wanted = absl::StrCat(name, "=", value);
  std::vector<std::string> lines = absl::StrSplit(absl::StripSuffix(text, "\n"), '\n');
  if (text.empty()) lines.clear();
  std::string* found = nullptr;
  for (std::string& line : lines) {
    if (absl::StartsWith(line, absl::StrCat(name, "="))) found = &line;
  }
  if (found != nullptr && *found == wanted) return false;
  if (found != nullptr) {
    *found = wanted;
  } else {
    lines.push_back(wanted);
  }
  STILL_RETURN_IF_ERROR(MakeDirectories(places_.configuration, 0755));
  STILL_RETURN_IF_ERROR(
      WriteFileAtomically(path, absl::StrCat(absl::StrJoin(lines, "\n"), "\n"), static_cast<mode_t>(mode)));
  return true;
}

}  // namespace still::cli
