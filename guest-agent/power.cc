#include "guest-agent/power.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>

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

// busybox init's own protocol (init/init.c). Any other init would take these signals for something else.
bool AskBusyboxInit(bool reboot) {
  char target[256];
  ssize_t size = ::readlink("/proc/1/exe", target, sizeof target);
  bool busybox =
      size > 0 && absl::string_view(target, static_cast<size_t>(size)).find("busybox") != absl::string_view::npos;
  // A shell script run by busybox's shell as process 1 is no init.
  absl::StatusOr<std::string> name = ReadFile("/proc/1/comm", 64);
  if (!busybox || !name.ok() || *name != "init\n") return false;
  absl::StatusOr<std::string> command = ReadFile("/proc/1/cmdline", 4096);
  if (!command.ok() || std::count(command->begin(), command->end(), '\0') != 1) return false;
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
