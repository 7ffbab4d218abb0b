#include "session/control/session_process.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"

namespace still::session {
namespace {

constexpr size_t kMaxCommandLine = 1 << 16;

// The words of a process's command line; empty when it is gone.
std::vector<std::string> CommandLine(int pid) {
  absl::StatusOr<std::string> text = ReadFile(absl::StrCat("/proc/", pid, "/cmdline"), kMaxCommandLine);
  if (!text.ok()) return {};
  return absl::StrSplit(*text, '\0');
}

bool WorksIn(int pid, const std::string& directory) {
  const std::vector<std::string> words = CommandLine(pid);
  return words.size() > 2 && absl::EndsWith(words[0], "still-session") && words[1] == "--directory" &&
         words[2] == directory;
}

}  // namespace

std::optional<OwnedFd> FindSessionProcess(const std::string& directory) {
  absl::StatusOr<std::vector<std::string>> entries = ListDirectory("/proc");
  if (!entries.ok()) return std::nullopt;
  for (const std::string& entry : *entries) {
    int pid = 0;
    if (!absl::SimpleAtoi(entry, &pid) || !WorksIn(pid, directory)) continue;
    OwnedFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (process.valid() && WorksIn(pid, directory)) return process;
  }
  return std::nullopt;
}

}  // namespace still::session
