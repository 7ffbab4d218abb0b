#include "tools/still/guest_image/install_agent.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "base/find_sibling.h"
#include "session/control/session_registry.h"

namespace still::cli {
namespace {

constexpr size_t kMaxProgram = 256 << 20;
constexpr size_t kMaxText = 1 << 20;
constexpr char kAgent[] = "/usr/sbin/still-agent";

bool AnyExists(GuestRoot& root, std::initializer_list<const char*> paths) {
  for (const char* path : paths) {
    if (root.Exists(path)) return true;
  }
  return false;
}

absl::Status ForSystemd(GuestRoot& root, const std::string& unit) {
  STILL_RETURN_IF_ERROR(root.Write("/etc/systemd/system/still-agent.service", unit, 0644));
  // What `systemctl enable` would do.
  return root.Link("/etc/systemd/system/sysinit.target.wants/still-agent.service", "../still-agent.service");
}

absl::Status ForSysvinit(GuestRoot& root, const std::string& script) {
  STILL_RETURN_IF_ERROR(root.Write("/etc/init.d/still-agent", script, 0755));
  for (char level : {'2', '3', '4', '5'}) {
    STILL_RETURN_IF_ERROR(
        root.Link(absl::StrCat("/etc/rc", std::string(1, level), ".d/S01still-agent"), "../init.d/still-agent"));
  }
  for (char level : {'0', '1', '6'}) {
    STILL_RETURN_IF_ERROR(
        root.Link(absl::StrCat("/etc/rc", std::string(1, level), ".d/K01still-agent"), "../init.d/still-agent"));
  }
  return absl::OkStatus();
}

absl::Status ForBusybox(GuestRoot& root, std::string inittab, const std::string& command) {
  const std::string line = absl::StrCat("::respawn:", command, "\n");
  if (absl::StrContains(inittab, kAgent)) return absl::OkStatus();
  if (!inittab.empty() && inittab.back() != '\n') inittab += '\n';
  return root.Write("/etc/inittab", inittab + line, 0644);
}

}  // namespace

bool LooksLikeRoot(GuestRoot& root) {
  return root.Exists("/etc") && AnyExists(root, {"/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd",
                                                 "/lib/systemd/systemd", "/etc/inittab", "/init"});
}

absl::Status NoRootFound(const GuestDisk& disk) {
  return absl::NotFoundError(absl::StrCat(
      disk.raw_path(),
      ": no ext4, xfs or btrfs with an operating system in it (what is encrypted, or on LVM, is not seen)"));
}

absl::StatusOr<AgentFiles> AgentFiles::Load() {
  STILL_ASSIGN_OR_RETURN(std::string program, FindSibling("guest/still-agent", "STILL_AGENT_PROGRAM"));
  const std::string directory = program.substr(0, program.rfind('/'));
  AgentFiles files;
  STILL_ASSIGN_OR_RETURN(files.program, ReadFile(program, kMaxProgram));
  STILL_ASSIGN_OR_RETURN(files.systemd_unit, ReadFile(JoinPath(directory, "still-agent.service"), kMaxText));
  STILL_ASSIGN_OR_RETURN(files.init_script, ReadFile(JoinPath(directory, "still-agent.init"), kMaxText));
  return files;
}

absl::StatusOr<std::string> InstallAgent(GuestRoot& root, const AgentFiles& files, uint32_t port) {
  const std::string command = port == 0 ? kAgent : absl::StrCat(kAgent, " --connect vsock:", port);
  std::string kind;
  std::string inittab;
  if (AnyExists(root, {"/usr/lib/systemd/systemd", "/lib/systemd/systemd"})) {
    kind = "systemd";
  } else if (absl::StatusOr<std::string> read = root.Read("/etc/inittab");
             read.ok() && absl::StrContains(*read, "::sysinit:")) {
    kind = "busybox";
    inittab = *read;
  } else if (root.Exists("/etc/init.d") && root.Exists("/etc/rc2.d")) {
    kind = "sysvinit";
  } else {
    return absl::FailedPreconditionError(
        "this guest has neither systemd nor a busybox or System V init; start still-agent by its own means");
  }
  STILL_RETURN_IF_ERROR(root.Write(kAgent, files.program, 0755));
  for (const char* hooks : {"/etc/still/hooks.d", "/etc/still/restore.d"}) {
    STILL_RETURN_IF_ERROR(root.MakeDirectory(hooks));
  }
  if (kind == "systemd") {
    const std::string start = "ExecStart=";
    STILL_RETURN_IF_ERROR(
        ForSystemd(root, absl::StrReplaceAll(files.systemd_unit, {{start + kAgent, start + command}})));
  } else if (kind == "sysvinit") {
    STILL_RETURN_IF_ERROR(
        ForSysvinit(root, absl::StrReplaceAll(files.init_script, {{"\"$agent\" <", absl::StrCat(command, " <")}})));
  } else {
    STILL_RETURN_IF_ERROR(ForBusybox(root, std::move(inittab), command));
  }
  return kind;
}

}  // namespace still::cli
