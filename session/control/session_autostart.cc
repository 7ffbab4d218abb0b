#include "session/control/session_autostart.h"

#include <signal.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/process.h"

namespace still::session {
namespace {

// The unit's; a state directory elsewhere has no unit.
constexpr char kUnitState[] = "/var/lib/stillpoint";
constexpr char kWants[] = "/etc/systemd/system/multi-user.target.wants";
constexpr absl::Duration kCommandLimit = absl::Seconds(30);

bool HasSystemd() { return ::geteuid() == 0 && PathExists("/run/systemd/system"); }

std::string UnitOf(const std::string& name) { return absl::StrCat("still-session@", name, ".service"); }

bool HasUnit() {
  for (const char* folder : {"/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"}) {
    if (PathExists(absl::StrCat(folder, UnitOf("")))) return true;
  }
  return false;
}

absl::Status Systemctl(const std::string& verb, const std::string& unit) {
  STILL_ASSIGN_OR_RETURN(
      CommandOutput output,
      RunCommand({.argv = {"systemctl", "--quiet", verb, unit}, .end_with_parent = true}, kCommandLimit));
  if (output.exit.ok()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("systemctl ", verb, " ", unit, ": ", absl::StripSuffix(output.stderr_text, "\n")));
}

}  // namespace

int EndOfHostSignal() { return SIGWINCH; }

std::vector<std::string> ScopeCommand(const sessionpb::SessionConfig& config) {
  if (!HasSystemd()) return {};
  return {"systemd-run", "--scope", "--quiet", "--collect",
          absl::StrCat("--unit=still-session-", config.name(), "-", config.id().substr(0, 8)),
          absl::StrCat("--description=Stillpoint session ", config.name()), "--property=KillSignal=SIGWINCH",
          "--property=TimeoutStopSec=90",
          // Ended in the opposite order: before what its guest needs to power off in peace.
          "--property=After=network.target remote-fs.target local-fs.target", "--"};
}

absl::Status EnableAutostart(const SessionRegistry& sessions, const std::string& name) {
  if (!HasSystemd() || !HasUnit()) {
    return absl::FailedPreconditionError(
        "sessions start with the host only for root, under systemd, with the package's still-session@.service");
  }
  if (sessions.root() != kUnitState) {
    return absl::FailedPreconditionError(
        absl::StrCat("sessions start with the host only in ", kUnitState, ", not in ", sessions.root()));
  }
  return Systemctl("enable", UnitOf(name));
}

absl::Status DisableAutostart(const SessionRegistry& sessions, const std::string& name) {
  if (!HasSystemd() || sessions.root() != kUnitState || !PathExists(JoinPath(kWants, UnitOf(name)))) {
    return absl::OkStatus();
  }
  return Systemctl("disable", UnitOf(name));
}

}  // namespace still::session
