#include "session/hypervisor/qemu/qemu_probe.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "session/hypervisor/qemu/qemu_confinement.h"

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

absl::StatusOr<std::string> Ask(const std::string& binary, const std::optional<ProcessUser>& user,
                                std::vector<std::string> arguments) {
  std::vector<std::string> argv = {binary};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand({.argv = std::move(argv), .user = user}, kAnswerTimeout));
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

std::vector<std::string> ParseDevices(absl::string_view output) {
  std::vector<std::string> devices;
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    if (absl::ConsumePrefix(&line, "name \"")) devices.emplace_back(line.substr(0, line.find('"')));
  }
  return devices;
}

std::vector<std::string> ParseNetworks(absl::string_view output) {
  std::vector<std::string> networks;
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    if (!line.empty() && !absl::StrContains(line, ' ')) networks.emplace_back(line);
  }
  return networks;
}

std::vector<std::string> ParseCpuModels(absl::string_view output) {
  std::vector<std::string> models;
  for (absl::string_view line : absl::StrSplit(output, '\n')) {
    if (absl::StartsWith(line, "Recognized CPUID")) break;
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    const size_t name = !words.empty() && words[0] == "x86" ? 1 : 0;
    if (words.size() > name && words[0] != "Available") models.emplace_back(words[name]);
  }
  return models;
}

absl::StatusOr<std::string> FindFirmware(const QemuFacts& facts, const std::string& firmware) {
  if (absl::StrContains(firmware, '/')) {
    if (::access(firmware.c_str(), R_OK) == 0) return firmware;
    return ErrnoStatus(errno, absl::StrCat("firmware ", firmware));
  }
  const std::string file = firmware == "seabios" ? "bios-256k.bin" : firmware == "qboot" ? "qboot.rom" : firmware;
  for (const std::string& folder : facts.data_folders) {
    std::string path = JoinPath(folder, file);
    if (::access(path.c_str(), R_OK) == 0) return path;
  }
  return absl::NotFoundError(absl::StrCat("QEMU has no firmware ", file, " in ",
                                          absl::StrJoin(facts.data_folders, ", "),
                                          "; install qemu-system-data and seabios"));
}

absl::StatusOr<QemuFacts> ProbeQemu(const std::string& cache) {
  QemuFacts facts;
  STILL_ASSIGN_OR_RETURN(facts.binary, FindQemu());
  STILL_ASSIGN_OR_RETURN(std::string fingerprint, Fingerprint(facts.binary));
  std::vector<std::string>* const lists[] = {&facts.machine_types, &facts.devices, &facts.networks, &facts.cpu_models,
                                             &facts.data_folders};
  // The first line tells whether the rest is still true. Then the version, and each list in a line, by tabs.
  constexpr size_t kFirstList = 2;
  if (auto known = ReadFile(cache, kMaxCacheBytes); known.ok()) {
    const std::vector<std::string> lines = absl::StrSplit(*known, '\n');
    if (lines.size() > kFirstList + std::size(lists) && lines[0] == fingerprint) {
      facts.version = lines[1];
      for (size_t i = 0; i < std::size(lists); ++i) {
        *lists[i] = absl::StrSplit(lines[kFirstList + i], '\t', absl::SkipEmpty());
      }
      return facts;
    }
  }
  // A program that is not run as root need not be so to say what it can do.
  const std::optional<ProcessUser> user = ChooseQemuUser(facts.binary).user;
  auto ask = [&](absl::string_view option) { return Ask(facts.binary, user, {std::string(option), "help"}); };
  STILL_ASSIGN_OR_RETURN(std::string answer, Ask(facts.binary, user, {"--version"}));
  STILL_ASSIGN_OR_RETURN(facts.version, ParseQemuVersion(answer));
  STILL_ASSIGN_OR_RETURN(answer, ask("-machine"));
  facts.machine_types = ParseMachineTypes(answer);
  STILL_ASSIGN_OR_RETURN(answer, ask("-device"));
  facts.devices = ParseDevices(answer);
  STILL_ASSIGN_OR_RETURN(answer, ask("-netdev"));
  facts.networks = ParseNetworks(answer);
  STILL_ASSIGN_OR_RETURN(answer, ask("-cpu"));
  facts.cpu_models = ParseCpuModels(answer);
  STILL_ASSIGN_OR_RETURN(answer, ask("-L"));
  facts.data_folders = absl::StrSplit(answer, '\n', absl::SkipEmpty());
  std::string text = absl::StrCat(fingerprint, "\n", facts.version, "\n");
  for (const std::vector<std::string>* list : lists) absl::StrAppend(&text, absl::StrJoin(*list, "\t"), "\n");
  absl::Status kept = WriteFileAtomically(cache, text);
  if (!kept.ok()) LogDebug("QEMU's facts are not kept", {{"error", kept.ToString()}});
  return facts;
}

}  // namespace still::session
