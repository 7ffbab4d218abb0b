#include "guest-agent/power.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "guest-agent/kernel_freezer.h"

namespace still::agent {
namespace {

constexpr absl::Duration kAnswerTime = absl::Milliseconds(100);
constexpr absl::Duration kInitPatience = absl::Seconds(10);
constexpr absl::Duration kTermPatience = absl::Seconds(2);

bool AskSystemd(bool reboot) {
  if (!PathExists("/run/systemd/system")) return false;
  auto output = RunCommand({.argv = {"systemctl", "--no-block", reboot ? "reboot" : "poweroff"}}, kInitPatience);
  return output.ok() && output->exit.ok();
}

// busybox init's own protocol (init/init.c). Any other process 1 would take these signals for something else; a script
// that busybox's shell runs as process 1 is known by its first argument, which names the shell.
bool AskBusyboxInit(bool reboot) {
  char target[256];
  ssize_t size = ::readlink("/proc/1/exe", target, sizeof target);
  if (size <= 0 || !absl::StrContains(absl::string_view(target, static_cast<size_t>(size)), "busybox")) return false;
  absl::StatusOr<std::string> command = ReadFile("/proc/1/cmdline", 64 << 10);
  if (!command.ok()) return false;
  absl::string_view program = absl::string_view(*command).substr(0, command->find('\0'));
  program.remove_prefix(program.rfind('/') + 1);  // npos + 1 is 0.
  if (program != "init" && program != "linuxrc") return false;
  return ::kill(1, reboot ? SIGTERM : SIGUSR2) == 0;
}

// Backwards, so that what lies on another file system is finished first. A file system that refuses keeps its journal:
// it was synced, and recovers at its next mount.
void MakeAllReadOnly() {
  KernelFreezer freezer;
  absl::StatusOr<MountSurvey> survey = freezer.Survey();
  if (!survey.ok()) return;
  for (auto mount = survey->mounts.rbegin(); mount != survey->mounts.rend(); ++mount) {
    if (mount->device.anonymous() && mount->fs_type != "btrfs") continue;
    (void)::mount(nullptr, mount->mount_point.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr);
  }
}

[[noreturn]] void EndByForce(bool reboot) {
  // Everybody but ourselves and process 1, which the kernel protects. The guardian forwards its SIGTERM to us, which is
  // ignored (ending()).
  ::kill(-1, SIGTERM);
  Clock::Real().Sleep(kTermPatience);
  ::kill(-1, SIGKILL);
  ::sync();
  MakeAllReadOnly();
  for (;;) {
    ::reboot(reboot ? RB_AUTOBOOT : RB_POWER_OFF);
    Clock::Real().Sleep(absl::Seconds(1));
  }
}

void End(bool reboot) {
  Clock::Real().Sleep(kAnswerTime);
  LogInfo(reboot ? "rebooting" : "powering off");
  if (AskSystemd(reboot) || AskBusyboxInit(reboot)) Clock::Real().Sleep(kInitPatience);
  EndByForce(reboot);
}

}  // namespace

void KernelPower::Off(bool reboot) {
  if (ending_.exchange(true)) return;
  // Detached: it ends with the guest.
  std::thread([reboot] { End(reboot); }).detach();
}

}  // namespace still::agent
