#include "tests/kernel/guest-agent/cell.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/file.h"
#include "base/process.h"

namespace still::agent {
namespace {

constexpr unsigned kLoopMajor = 7;

// The last barrier: if any file system of the machine itself were to be seen from here, nothing is started.
bool OnlySandboxIsMounted() {
  absl::StatusOr<std::string> text = ReadFile("/proc/self/mountinfo", kMaxMountTableBytes);
  if (!text.ok()) return false;
  absl::StatusOr<std::vector<MountEntry>> mounts = ParseMountTable(*text);
  if (!mounts.ok()) return false;
  for (const MountEntry& mount : *mounts) {
    bool loop = mount.device.major == kLoopMajor || absl::StartsWith(mount.source, "/dev/loop");
    bool no_disk = mount.device.anonymous() && !absl::StartsWith(mount.source, "/");
    if (!loop && !no_disk) return false;
  }
  return true;
}

[[noreturn]] void BecomeInit(const std::string& root, const std::vector<std::string>& argv) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  bool inside = ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 && ::chdir(root.c_str()) == 0 &&
                ::mount("proc", "proc", "proc", 0, nullptr) == 0 && ::syscall(SYS_pivot_root, ".", ".") == 0 &&
                ::umount2(".", MNT_DETACH) == 0 && ::chdir("/") == 0;
  if (!inside || !OnlySandboxIsMounted()) {
    std::perror("cell: not closed");
    ::_exit(99);
  }
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  ::execv(arguments[0], arguments.data());
  std::perror("cell: exec");
  ::_exit(98);
}

}  // namespace

Cell::Cell(Sandbox& sandbox) : sandbox_(sandbox) {
  sandbox_.MakeDirectory("root");
  sandbox_.Mount({"-t", "tmpfs", "-o", "size=96m,mode=755", "tmpfs", sandbox_ / "root"});
  for (const char* name : {"root/proc", "root/run", "root/tmp", "root/dev"}) sandbox_.MakeDirectory(name);
  STILL_CHECK(::mknod(Path("/dev/null").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
}

Cell::~Cell() { Kill(); }

std::string Cell::Path(absl::string_view inside) const { return absl::StrCat(sandbox_ / "root", inside); }

void Cell::AddLoopDevices() {
  for (const std::string& name : ListDirectory("/dev").value_or(std::vector<std::string>())) {
    unsigned number;
    absl::string_view digits = name;
    if (!absl::ConsumePrefix(&digits, "loop") || !absl::SimpleAtoi(digits, &number)) continue;
    STILL_CHECK(::mknod(Path("/dev/" + name).c_str(), S_IFBLK | 0600, makedev(kLoopMajor, number)) == 0);
  }
}

void Cell::Install(const std::string& program) {
  std::vector<std::string> files = {program};
  auto output = RunCommand({.argv = {"ldd", program}}, absl::Seconds(60));
  STILL_CHECK(output.ok());
  // "libx.so.1 => /lib/libx.so.1 (0x7f...)" or "/lib64/ld-linux-x86-64.so.2 (0x7f...)"; nothing for a static program.
  for (absl::string_view line : absl::StrSplit(output->stdout_text, '\n')) {
    for (absl::string_view word : absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty())) {
      if (absl::StartsWith(word, "/")) files.emplace_back(word);
    }
  }
  for (const std::string& file : files) {
    std::string target = Path(file);
    STILL_CHECK(MakeDirectories(std::filesystem::path(target).parent_path().string(), 0755).ok());
    // Follows symbolic links: the library, under the name that it is looked for.
    std::filesystem::copy_file(file, target);
  }
}

void Cell::Start(const std::vector<std::string>& argv) {
  STILL_CHECK(pid_ == 0);
  const std::string root = sandbox_ / "root";
  // The namespace of pids is entered by the next child only: one process makes it, its child lives in it.
  int fds[2];
  STILL_CHECK(::pipe2(fds, O_CLOEXEC) == 0);
  pid_t maker = ::fork();
  STILL_CHECK(maker >= 0);
  if (maker == 0) {
    if (::unshare(CLONE_NEWNS | CLONE_NEWPID) != 0) ::_exit(97);
    pid_t init = ::fork();
    if (init == 0) BecomeInit(root, argv);
    if (::write(fds[1], &init, sizeof init) != sizeof init) ::_exit(96);
    // Stays, as the parent whose death would kill the cell (PR_SET_PDEATHSIG), and reaps.
    ::close(fds[1]);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int status = 0;
    ::waitpid(init, &status, 0);
    ::_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128);
  }
  ::close(fds[1]);
  STILL_CHECK(::read(fds[0], &pid_, sizeof pid_) == sizeof pid_);
  ::close(fds[0]);
  maker_ = maker;
}

void Cell::Kill() {
  if (pid_ == 0) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(maker_, nullptr, 0);
  pid_ = 0;
}

pid_t Cell::ChildOf(pid_t parent) const {
  for (const std::string& name : ListDirectory("/proc").value_or(std::vector<std::string>())) {
    pid_t pid;
    if (!absl::SimpleAtoi(name, &pid)) continue;
    std::string stat = ReadFile(absl::StrCat("/proc/", name, "/stat"), 4096).value_or("");
    size_t end = stat.rfind(')');
    if (end == std::string::npos) continue;
    std::vector<absl::string_view> fields = absl::StrSplit(absl::string_view(stat).substr(end + 2), ' ');
    if (fields.size() > 1 && fields[0] != "Z" && fields[1] == absl::StrCat(parent)) return pid;
  }
  return 0;
}

}  // namespace still::agent
