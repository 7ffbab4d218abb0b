#include "guest-agent/hooks.h"

#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/process.h"

namespace still::agent {
namespace {

constexpr size_t kMaxOutputBytes = 1024;
constexpr absl::Duration kPollInterval = absl::Milliseconds(10);
constexpr size_t kMaxHooks = 256;
// After SIGKILL: a process that can end does so in milliseconds.
constexpr absl::Duration kDeathLimit = absl::Seconds(1);

bool IsExecutableFile(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

void AppendHooksIn(const std::string& directory, std::vector<std::string>& hooks) {
  // No such directory: no hooks.
  for (const std::string& name : ListDirectory(directory).value_or(std::vector<std::string>())) {
    std::string path = JoinPath(directory, name);
    if (!IsSkippedHookName(name) && IsExecutableFile(path)) hooks.push_back(std::move(path));
  }
}

std::string Resolved(const std::string& path) {
  std::error_code none;
  return std::filesystem::weakly_canonical(path, none).string();
}

// What is there now, keeping the last kMaxOutputBytes. False at the end.
bool ReadAvailable(int fd, std::string& output) {
  char buffer[4096];
  for (;;) {
    ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    output.append(buffer, static_cast<size_t>(got));
    if (output.size() > kMaxOutputBytes) output.erase(0, output.size() - kMaxOutputBytes);
  }
}

// Protobuf strings must be UTF-8; what a program prints need not be.
std::string Printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  return text;
}

struct HookEnd {
  int exit_code = -1;
  std::string output;
  std::optional<ChildProcess> left_behind;  // Killed, but it does not end.
};

HookEnd RunToEnd(ProcessOptions options, absl::Duration deadline, const std::function<bool()>& cancelled) {
  HookEnd end;
  absl::StatusOr<Pipe> said = MakePipe();
  if (absl::Status ready = said.ok() ? SetNonBlocking(said->read_end.get()) : said.status(); !ready.ok()) {
    return {-1, Printable(ready.ToString()), {}};
  }
  const int read_end = said->read_end.get();
  options.stdout_fd = options.stderr_fd = said->write_end.get();
  options.new_session = true;
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(options);
  if (!child.ok()) return {-1, Printable(child.status().ToString()), {}};
  said->write_end.Reset();
  const char* killed = nullptr;
  pollfd wait[2] = {{.fd = child->pidfd(), .events = POLLIN, .revents = 0},
                    {.fd = read_end, .events = POLLIN, .revents = 0}};
  while (wait[0].revents == 0) {
    if (cancelled()) killed = "the freeze was given up";
    if (Clock::Real().Monotonic() >= deadline) killed = "still running at its deadline";
    if (killed != nullptr) break;
    (void)::poll(wait, 2, static_cast<int>(absl::ToInt64Milliseconds(kPollInterval)));
    if (wait[1].revents != 0 && !ReadAvailable(read_end, end.output)) wait[1].fd = -1;
  }
  if (killed != nullptr) {
    // Its group, and before it is reaped: the number cannot have been given to anybody else.
    ::kill(-child->pid(), SIGKILL);
  }
  absl::StatusOr<ProcessExit> exit = child->Wait(killed == nullptr ? absl::InfiniteDuration() : kDeathLimit);
  (void)ReadAvailable(read_end, end.output);
  end.output = Printable(std::move(end.output));
  if (killed != nullptr) {
    absl::StrAppend(&end.output, end.output.empty() ? "" : "\n", "killed: ", killed);
  }
  if (absl::IsDeadlineExceeded(exit.status())) {
    end.output += ", and hangs in the kernel";
    end.left_behind = *std::move(child);
  } else if (killed == nullptr && exit.ok()) {
    end.exit_code = exit->signal != 0 ? 128 + exit->signal : exit->exit_code;
  }
  return end;
}

}  // namespace

bool IsSkippedHookName(absl::string_view name) {
  for (absl::string_view suffix :
       {"~", ".bak", ".orig", ".rpmnew", ".rpmorig", ".rpmsave", ".sample", ".dpkg-old", ".dpkg-new", ".dpkg-tmp",
        ".dpkg-dist", ".dpkg-bak", ".dpkg-backup", ".dpkg-remove"}) {
    if (absl::EndsWith(name, suffix)) return true;
  }
  return absl::StartsWith(name, ".");
}

std::vector<std::string> HookPrograms::List() {
  std::vector<std::string> hooks;
  AppendHooksIn(directories_.own, hooks);
  // A single hook beside a directory is its wrapper, also where another place has a link to it.
  std::set<std::string> seen;
  for (const HookDirectories::Qemu& qemu : directories_.qemu) {
    if (PathExists(qemu.directory)) seen.insert(Resolved(qemu.single));
  }
  std::vector<std::string> theirs;
  for (const HookDirectories::Qemu& qemu : directories_.qemu) {
    if (PathExists(qemu.directory)) {
      AppendHooksIn(qemu.directory, theirs);
    } else if (IsExecutableFile(qemu.single)) {
      theirs.push_back(qemu.single);
    }
  }
  for (std::string& path : theirs) {
    if (seen.insert(Resolved(path)).second) hooks.push_back(std::move(path));
  }
  if (hooks.size() > kMaxHooks) hooks.resize(kMaxHooks);
  return hooks;
}

bool HookPrograms::StillHangs(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  auto left = left_behind_.find(path);
  if (left == left_behind_.end()) return false;
  if (!left->second.Wait(absl::ZeroDuration()).ok()) return true;
  left_behind_.erase(left);
  return false;
}

HookPrograms::~HookPrograms() {
  // They were killed; whoever inherits them reaps them.
  for (auto& [path, child] : left_behind_) child.Release();
}

pb::HookResult HookPrograms::Run(const std::string& path, absl::string_view verb, absl::Duration timeout,
                                 const std::function<bool()>& cancelled) {
  absl::Duration start = Clock::Real().Monotonic();
  HookEnd end;
  if (StillHangs(path)) {
    end.output = "not started: it was killed the last time, and still hangs in the kernel";
  } else {
    end = RunToEnd({.argv = {path, std::string(verb)}, .environment = environment_}, start + timeout, cancelled);
  }
  if (end.left_behind) {
    absl::MutexLock lock(&mutex_);
    left_behind_.emplace(path, *std::move(end.left_behind));
  }
  pb::HookResult result;
  result.set_path(path);
  result.set_verb(std::string(verb));
  result.set_exit_code(end.exit_code);
  result.set_duration_us(static_cast<uint64_t>(absl::ToInt64Microseconds(Clock::Real().Monotonic() - start)));
  result.set_output(std::move(end.output));
  return result;
}

}  // namespace still::agent
