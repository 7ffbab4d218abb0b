#include "session/control/session_process.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/log.h"
#include "base/status.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

constexpr size_t kMaxCommandLine = 1 << 16;
// A session ends its hypervisor and its disk servers before it goes.
constexpr absl::Duration kOrderlyEnd = absl::Seconds(30);
constexpr absl::Duration kForcedEnd = absl::Seconds(10);

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

absl::Status Signal(int pidfd, int signal) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0) == 0 || errno == ESRCH) return absl::OkStatus();
  return ErrnoStatus(errno, "signal to still-session");
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

absl::Status EndSessionProcess(const std::string& directory) {
  std::optional<OwnedFd> process = FindSessionProcess(directory);
  if (!process.has_value()) return absl::NotFoundError(absl::StrCat("no still-session works in ", directory));
  STILL_RETURN_IF_ERROR(Signal(process->get(), SIGTERM));
  if (WaitReadable(process->get(), kOrderlyEnd, "the session's end").ok()) return absl::OkStatus();
  LogWarning("session did not end when asked", {{"directory", directory}});
  STILL_RETURN_IF_ERROR(Signal(process->get(), SIGKILL));
  return WaitReadable(process->get(), kForcedEnd, "the session's end");
}

}  // namespace still::session
