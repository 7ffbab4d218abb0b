#include "guest-agent/identity/guest_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/random.h"
#include "base/undo.h"

namespace still::agent {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMinSeedBytes = 32;
constexpr size_t kMaxSeedBytes = 4096;
// An RSA key takes half a minute on an emulated processor.
constexpr absl::Duration kKeyTimeout = absl::Seconds(120);
constexpr absl::Duration kServiceTimeout = absl::Seconds(30);

bool IsRegularFile(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

// In place when it cannot be replaced: systemd mounts a file over /etc/machine-id in some guests.
absl::Status Overwrite(const std::string& path, absl::string_view content, mode_t mode) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) mode = status.st_mode & 07777;
  if (WriteFileAtomically(path, content, mode).ok()) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_WRONLY | O_TRUNC));
  STILL_RETURN_IF_ERROR(WriteAll(fd.get(), content.data(), content.size(), path));
  if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", path));
  return absl::OkStatus();
}

// `name` as a word of its own, in every line that is no comment.
std::string ReplaceHostWord(absl::string_view hosts, absl::string_view name, absl::string_view by) {
  std::vector<std::string> lines;
  for (absl::string_view line : absl::StrSplit(hosts, '\n')) {
    std::string changed;
    std::string word;
    bool comment = false;
    auto finish_word = [&] {
      absl::StrAppend(&changed, !comment && word == name ? by : absl::string_view(word));
      word.clear();
    };
    for (char c : line) {
      comment |= c == '#';
      if (c == ' ' || c == '\t') {
        finish_word();
        changed += c;
      } else {
        word += c;
      }
    }
    finish_word();
    lines.push_back(std::move(changed));
  }
  return absl::StrJoin(lines, "\n");
}

}  // namespace

StepResult StepResult::Of(const absl::Status& status) {
  return {status.ok() ? pb::IdentityStep::DONE : pb::IdentityStep::FAILED, std::string(status.message())};
}

bool GuestFiles::HasSystemd() const { return PathExists(Path("/run/systemd/system")); }

StepResult GuestFiles::SetMachineId(const std::string& id) {
  if (!PathExists(Path("/etc/machine-id"))) return StepResult::Skipped("this guest has none");
  absl::Status status = Overwrite(Path("/etc/machine-id"), id + "\n", 0444);
  // Usually a symbolic link to the other.
  std::string dbus = Path("/var/lib/dbus/machine-id");
  if (IsRegularFile(dbus)) status = FirstError(status, Overwrite(dbus, id + "\n", 0444));
  return StepResult::Of(status);
}

std::string GuestFiles::MachineId() const {
  std::string id = ReadFile(Path("/etc/machine-id"), 256).value_or("");
  absl::StripAsciiWhitespace(&id);
  // It goes into an answer, as text.
  return std::all_of(id.begin(), id.end(), absl::ascii_isxdigit) ? id : "";
}

absl::Status GuestFiles::SetHostName(const std::string& old_name, const std::string& new_name) {
  absl::Status status;
  if (PathExists(Path("/etc/hostname"))) status = Overwrite(Path("/etc/hostname"), new_name + "\n", 0644);
  absl::StatusOr<std::string> hosts = ReadFile(Path("/etc/hosts"), kMaxFileBytes);
  if (!hosts.ok() || old_name.empty()) return status;
  std::string changed = ReplaceHostWord(*hosts, old_name, new_name);
  if (changed == *hosts) return status;
  return FirstError(status, Overwrite(Path("/etc/hosts"), changed, 0644));
}

absl::Status GuestFiles::RenewSshKey(const std::string& name, const std::string& kind) {
  std::string directory = Path(absl::StrCat("/etc/ssh/.still-", absl::Hex(RandomU64())));
  UndoStack undo;
  STILL_RETURN_IF_ERROR(MakeDirectories(directory, 0700));
  undo.Push("remove new SSH key", [directory] { return RemoveTree(directory); });
  std::string made = JoinPath(directory, name);
  STILL_ASSIGN_OR_RETURN(CommandOutput output,
                         run_({"ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "root", "-f", made}, kKeyTimeout));
  if (!output.exit.ok()) {
    return absl::InternalError(absl::StrCat("ssh-keygen -t ", kind, ": ", output.exit.ToString()));
  }
  for (const char* suffix : {"", ".pub"}) {
    std::string target = absl::StrCat(Path("/etc/ssh/"), name, suffix);
    if (::rename(absl::StrCat(made, suffix).c_str(), target.c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("rename to ", target));
    }
  }
  return SyncDirectory(Path("/etc/ssh"));  // `undo` removes the directory in any case.
}

StepResult GuestFiles::RenewSshHostKeys() {
  std::vector<std::string> renewed;
  absl::Status status;
  for (const std::string& name : ListDirectory(Path("/etc/ssh")).value_or(std::vector<std::string>())) {
    absl::string_view kind = name;
    if (!absl::ConsumePrefix(&kind, "ssh_host_") || !absl::ConsumeSuffix(&kind, "_key")) continue;
    absl::Status one = RenewSshKey(name, std::string(kind));
    if (one.ok()) renewed.emplace_back(kind);
    status = FirstError(status, one);
  }
  if (renewed.empty() && status.ok()) return StepResult::Skipped("this guest has none");
  if (HasSystemd()) {
    for (const char* unit : {"ssh.service", "sshd.service"}) {
      // Not every guest has it under this name, and none may run.
      (void)run_({"systemctl", "try-reload-or-restart", unit}, kServiceTimeout);
    }
  } else {
    pid_t pid;
    std::string text = ReadFile(Path("/run/sshd.pid"), 64).value_or("");
    if (absl::SimpleAtoi(text, &pid) && pid > 1) ::kill(pid, SIGHUP);
  }
  StepResult result = StepResult::Of(status);
  if (status.ok()) result.detail = absl::StrJoin(renewed, ", ");
  return result;
}

std::string GuestFiles::InterfaceWithMac(absl::string_view mac) const {
  std::string all = Path("/sys/class/net");
  for (const std::string& name : ListDirectory(all).value_or(std::vector<std::string>())) {
    std::string address = ReadFile(absl::StrCat(all, "/", name, "/address"), 256).value_or("");
    if (absl::EqualsIgnoreCase(absl::StripAsciiWhitespace(address), mac)) return name;
  }
  return "";
}

StepResult GuestFiles::ForgetDhcpIdentity() {
  // Directory and the ends of the names that count, per client: ISC's, NetworkManager's, systemd's, dhcpcd's.
  struct Place {
    const char* directory;
    const char* suffix;
  };
  constexpr Place kPlaces[] = {{"/var/lib/dhcp", ".leases"},          {"/var/lib/dhcp", ".lease"},
                               {"/var/lib/NetworkManager", ".lease"}, {"/run/systemd/netif/leases", ""},
                               {"/var/lib/dhcpcd", ".lease"},         {"/var/lib/dhcpcd", ".lease6"},
                               {"/var/lib/dhcpcd", "duid"},           {"/var/lib/dhcpcd", "secret"}};
  int removed = 0;
  absl::Status status;
  for (const Place& place : kPlaces) {
    for (const std::string& name : ListDirectory(Path(place.directory)).value_or(std::vector<std::string>())) {
      if (!absl::EndsWith(name, place.suffix)) continue;
      status = FirstError(status, RemoveFile(absl::StrCat(Path(place.directory), "/", name)));
      ++removed;
    }
  }
  if (HasSystemd()) {
    for (const char* unit : {"systemd-networkd", "NetworkManager", "dhcpcd", "networking"}) {
      // Only what runs is restarted; what is not installed is no error.
      (void)run_({"systemctl", "try-restart", unit}, kServiceTimeout);
    }
  }
  StepResult result = StepResult::Of(status);
  if (status.ok()) result.detail = absl::StrCat(removed, " leases and identifiers removed");
  return result;
}

StepResult GuestFiles::RenewRandomSeeds() {
  int renewed = 0;
  absl::Status status;
  for (const char* path : {"/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/random-seed",
                           "/var/lib/seedrng/seed.credit", "/var/lib/seedrng/seed.no-credit"}) {
    if (!IsRegularFile(Path(path))) continue;
    uint64_t size = FileSize(Path(path)).value_or(0);
    std::string seed(std::clamp<size_t>(size, kMinSeedBytes, kMaxSeedBytes), '\0');
    RandomBytes(seed.data(), seed.size());
    status = FirstError(status, Overwrite(Path(path), seed, 0600));
    ++renewed;
  }
  if (renewed == 0) return StepResult::Skipped("this guest has none");
  return StepResult::Of(status);
}

}  // namespace still::agent
