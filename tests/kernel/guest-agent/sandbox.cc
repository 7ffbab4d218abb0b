#include "tests/kernel/guest-agent/sandbox.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/file.h"
#include "base/process.h"

namespace still::agent {
namespace {

constexpr int kWatchdogPatienceMs = 30000;
constexpr off_t kMiB = 1 << 20;

// What mkfs needs at least; the files are sparse.
off_t ImageSize(const std::string& fs_type) {
  if (fs_type == "xfs") return 320 * kMiB;
  if (fs_type == "btrfs") return 128 * kMiB;
  return 32 * kMiB;
}

void Run(std::vector<std::string> argv) {
  std::string command = absl::StrJoin(argv, " ");
  auto output = RunCommand({.argv = std::move(argv)}, absl::Seconds(60));
  if (output.ok() && output->exit.ok()) return;
  std::fprintf(stderr, "%s: %s\n", command.c_str(),
               output.ok() ? output->stderr_text.c_str() : output.status().ToString().c_str());
  STILL_CHECK(false);
}

std::vector<MountEntry> MountsBelow(const std::string& path) {
  std::vector<MountEntry> below;
  absl::StatusOr<std::string> text = ReadFile("/proc/self/mountinfo", kMaxMountTableBytes);
  STILL_CHECK(text.ok());
  absl::StatusOr<std::vector<MountEntry>> mounts = ParseMountTable(*text);
  STILL_CHECK(mounts.ok());
  for (MountEntry& mount : *mounts) {
    if (absl::StartsWith(mount.mount_point, path + "/")) below.push_back(std::move(mount));
  }
  return below;
}

void ThawBelow(const std::string& path) {
  for (const MountEntry& mount : MountsBelow(path)) {
    while (ThawBehindItsBack(mount.mount_point) == 0) {
    }
  }
}

// Loop devices were set up to detach themselves with their last mount.
void UnmountBelow(const std::string& path) {
  std::vector<MountEntry> mounts = MountsBelow(path);
  for (auto mount = mounts.rbegin(); mount != mounts.rend(); ++mount) {
    (void)::umount2(mount->mount_point.c_str(), MNT_DETACH);
  }
}

[[noreturn]] void RunWatchdog(int life_line, const std::string& path) {
  ::setsid();
  ::prctl(PR_SET_NAME, "freeze-watchdog");
  for (;;) {
    pollfd fd = {.fd = life_line, .events = POLLIN, .revents = 0};
    int ready = ::poll(&fd, 1, kWatchdogPatienceMs);
    if (ready == 0) {
      std::fprintf(stderr, "watchdog: no sign of life, thawing\n");
      ThawBelow(path);
      continue;
    }
    char byte;
    if (ready > 0 && ::read(life_line, &byte, 1) == 1) continue;
    ThawBelow(path);
    UnmountBelow(path);
    (void)RemoveTree(path);
    ::_exit(0);
  }
}

int Control(const std::string& mount_point, unsigned long request) {
  OwnedFd fd(::open(mount_point.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return errno;
  return ::ioctl(fd.get(), request, 0) == 0 ? 0 : errno;
}

}  // namespace

std::unique_ptr<Sandbox> Sandbox::Make(std::string& skip_reason) {
  if (::geteuid() != 0) {
    skip_reason = "needs root";
    return nullptr;
  }
  if (!PathExists("/dev/loop-control")) {
    skip_reason = "needs loop devices";
    return nullptr;
  }
  if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    skip_reason = "needs a mount namespace of its own";
    return nullptr;
  }
  // On disk: images of hundreds of megabytes do not belong in memory. (They are sparse.)
  char name[] = "/tmp/still-freeze-XXXXXX";
  STILL_CHECK(::mkdtemp(name) != nullptr);
  int fds[2];
  STILL_CHECK(::pipe2(fds, O_CLOEXEC) == 0);
  pid_t watchdog = ::fork();
  STILL_CHECK(watchdog >= 0);
  if (watchdog == 0) {
    ::close(fds[1]);
    RunWatchdog(fds[0], name);
  }
  ::close(fds[0]);
  return std::unique_ptr<Sandbox>(new Sandbox(name, watchdog, OwnedFd(fds[1])));
}

Sandbox::Sandbox(std::string path, pid_t watchdog, OwnedFd life_line)
    : path_(std::move(path)), watchdog_(watchdog), life_line_(std::move(life_line)) {}

Sandbox::~Sandbox() {
  life_line_.Reset();
  ::waitpid(watchdog_, nullptr, 0);
}

std::string Sandbox::operator/(absl::string_view name) const { return JoinPath(path_, name); }

void Sandbox::Alive() { STILL_CHECK(::write(life_line_.get(), "+", 1) == 1); }

void Sandbox::MakeDirectory(const std::string& name) { STILL_CHECK(MakeDirectories(*this / name, 0755).ok()); }

void Sandbox::MountNew(const std::string& fs_type, const std::string& image, const std::string& name,
                       const std::string& options) {
  std::string file = *this / image;
  {
    absl::StatusOr<OwnedFd> fd = OpenFile(file, O_RDWR | O_CREAT | O_EXCL);
    STILL_CHECK(fd.ok() && ::ftruncate(fd->get(), ImageSize(fs_type)) == 0);
  }
  Run({absl::StrCat("mkfs.", fs_type), "-q", file});
  MakeDirectory(name);
  Mount({"-o", options, file, *this / name});
}

void Sandbox::Mount(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"mount", "-n"});
  Run(std::move(arguments));
}

void Sandbox::Unmount(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"umount", "-n"});
  Run(std::move(arguments));
}

void Sandbox::ThawAndUnmountAll() {
  ThawBelow(path_);
  UnmountBelow(path_);
  for (const std::string& name : ListDirectory(path_).value_or(std::vector<std::string>())) {
    STILL_CHECK(RemoveTree(*this / name).ok());
  }
}

absl::StatusOr<MountSurvey> SandboxFreezer::Survey() {
  STILL_ASSIGN_OR_RETURN(MountSurvey survey, KernelFreezer::Survey());
  survey.incomplete.clear();  // What other tests' processes do is not the sandbox's.
  std::erase_if(survey.mounts, [this](const MountEntry& mount) {
    return !absl::StartsWith(mount.mount_point, sandbox_.path() + "/");
  });
  return survey;
}

absl::StatusOr<std::unique_ptr<FileSystemHandle>> SandboxFreezer::Open(int mount_id, const std::string& path) {
  // Of another namespace it begins with the way there.
  STILL_CHECK(absl::StrContains(path, sandbox_.path() + "/"));
  return KernelFreezer::Open(mount_id, path);
}

KernelDisks::Sources SandboxDisks(const Sandbox& sandbox) {
  KernelDisks::Sources sources;
  sources.is_disk = [path = sandbox.path() + "/"](const std::string& directory) {
    return absl::StartsWith(ReadFile(JoinPath(directory, "loop/backing_file"), 4096).value_or(""), path);
  };
  return sources;
}

int FreezeBehindItsBack(const std::string& mount_point) { return Control(mount_point, FIFREEZE); }
int ThawBehindItsBack(const std::string& mount_point) { return Control(mount_point, FITHAW); }

bool IsFrozen(const std::string& mount_point) {
  int error = FreezeBehindItsBack(mount_point);
  if (error == 0) STILL_CHECK(ThawBehindItsBack(mount_point) == 0);
  return error == EBUSY;
}

Writer::Writer(const std::string& directory) {
  std::string file = JoinPath(directory, absl::StrCat("written-", ::getpid(), "-", reinterpret_cast<uintptr_t>(this)));
  pid_ = ::fork();
  STILL_CHECK(pid_ >= 0);
  if (pid_ != 0) return;
  int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  ::_exit(fd >= 0 && ::write(fd, "x", 1) == 1 ? 0 : 1);
}

Writer::~Writer() {
  if (ended_) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

bool Writer::IsBlocked() const {
  std::string stat = ReadFile(absl::StrCat("/proc/", pid_, "/stat"), 4096).value_or("");
  size_t end = stat.rfind(')');
  return end != std::string::npos && stat[end + 2] == 'D';
}

bool Writer::HasEnded() {
  if (!ended_) {
    int status = 0;
    ended_ = ::waitpid(pid_, &status, WNOHANG) == pid_;
    if (ended_) STILL_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  return ended_;
}

}  // namespace still::agent
