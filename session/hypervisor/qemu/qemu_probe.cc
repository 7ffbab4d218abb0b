#include "session/hypervisor/qemu/qemu_probe.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"

namespace still::session {
namespace {

constexpr char kDefaultProgram[] = "qemu-system-x86_64";
constexpr absl::Duration kAnswerTimeout = absl::Seconds(30);
constexpr size_t kMaxCacheBytes = 64 << 10;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Changes whenever the program does.
absl::StatusOr<std::string> Fingerprint(const std::string& binary) {
  struct stat info {};
  if (::stat(binary.c_str(), &info) != 0) return ErrnoStatus(errno, binary);
  return absl::StrCat(binary, " ", info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
}

absl::StatusOr<std::string> Ask(const std::string& binary, std::vector<std::string> arguments) {
  std::vector<std::string> argv = {binary};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand({.argv = std::move(argv)}, kAnswerTimeout));
  if (!output.exit.ok()) {
    return absl::FailedPreconditionError(absl::StrCat(binary, " does not run: ", output.exit.ToString()));
  }
  return output.stdout_text;
}

}  // namespace

absl::StatusOr<std::string> FindQemu(const std::string& wanted) {
  std::string name = wanted.empty() ? Environment("STILL_QEMU") : wanted;
  if (name.empty()) name = kDefaultProgram;
  if (absl::StrContains(name, '/')) return name;
  for (absl::string_view directory : absl::StrSplit(Environment("PATH"), ':', absl::SkipEmpty())) {
    std::string path = JoinPath(directory, name);
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return absl::NotFoundError(absl::StrCat(name, " is not in the PATH; install qemu-system-x86"));
}

absl::StatusOr<std::string> ParseQemuVersion(absl::string_view output) {
  if (absl::ConsumePrefix(&output, "QEMU emulator version ")) {
    std::string version(output.substr(0, output.find_first_not_of("0123456789.")));
    if (!version.empty()) return version;
  }
  return absl::InternalError(absl::StrCat("QEMU says of its version: ", output.substr(0, 100)));
}

std::vector<std::string> ParseMachineTypes(absl::string_view output) {
  std::vector<std::string> types;
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    absl::string_view word = line.substr(0, line.find(' '));
    if (!word.empty() && word != "Supported") types.emplace_back(word);
  }
  return types;
}

absl::StatusOr<QemuFacts> ProbeQemu(const std::string& cache) {
  QemuFacts facts;
  STILL_ASSIGN_OR_RETURN(facts.binary, FindQemu());
  STILL_ASSIGN_OR_RETURN(std::string fingerprint, Fingerprint(facts.binary));
  // Three lines: fingerprint, version, machine types.
  if (auto known = ReadFile(cache, kMaxCacheBytes); known.ok()) {
    std::vector<std::string> lines = absl::StrSplit(*known, '\n');
    if (lines.size() >= 3 && lines[0] == fingerprint) {
      facts.version = lines[1];
      facts.machine_types = absl::StrSplit(lines[2], ' ', absl::SkipEmpty());
      return facts;
    }
  }
  STILL_ASSIGN_OR_RETURN(std::string version, Ask(facts.binary, {"--version"}));
  STILL_ASSIGN_OR_RETURN(facts.version, ParseQemuVersion(version));
  STILL_ASSIGN_OR_RETURN(std::string types, Ask(facts.binary, {"-machine", "help"}));
  facts.machine_types = ParseMachineTypes(types);
  absl::Status kept = WriteFileAtomically(
      cache, absl::StrCat(fingerprint, "\n", facts.version, "\n", absl::StrJoin(facts.machine_types, " "), "\n"));
  if (!kept.ok()) LogDebug("QEMU's facts are not kept", {{"error", kept.ToString()}});
  return facts;
}

}  // namespace still::session
