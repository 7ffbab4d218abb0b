#include "tools/still/adopted_session.h"

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/random.h"
#include "base/undo.h"
#include "session/session_config.h"
#include "tools/still/disk_argument.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

constexpr absl::Duration kLaunchTimeout = absl::Seconds(60);
constexpr absl::Duration kLetGoTimeout = absl::Seconds(60);

absl::StatusOr<sessionpb::SessionConfig> ConfigOf(const AdoptArguments& arguments) {
  sessionpb::SessionConfig config;
  config.set_name(arguments.name);
  config.set_id(RandomUuid());
  config.mutable_machine()->set_hypervisor("process");
  config.set_vsock_backend(sessionpb::SessionConfig::OFF);
  config.set_adopt_pid(arguments.pid);
  if (arguments.disks.empty()) {
    return absl::InvalidArgumentError("with --pid, name the process's disk files: --disk FILE");
  }
  for (const std::string& disk : arguments.disks) STILL_RETURN_IF_ERROR(AddDisk(disk, config));
  STILL_RETURN_IF_ERROR(session::CheckOrdinaryName(config.name()));
  STILL_RETURN_IF_ERROR(session::ValidateConfig(config, /*has_ram=*/false));
  return config;
}

}  // namespace

absl::Status WithAdoptedProcess(Context& context, const AdoptArguments& arguments,
                                const std::function<absl::Status()>& work) {
  STILL_ASSIGN_OR_RETURN(sessionpb::SessionConfig config, ConfigOf(arguments));
  session::SessionRegistry sessions = context.sessions();
  STILL_ASSIGN_OR_RETURN(session::SessionPlace place, sessions.Create(arguments.name));
  UndoStack undo;  // All of it, in the good case too: the session is only a means.
  undo.Push("remove the session's directory", [&place] { return RemoveTree(place.directory); });
  STILL_RETURN_IF_ERROR(sessions.Launch(config, {.timeout = kLaunchTimeout, .lock_fd = place.lock.get()}).status());
  undo.Push("let the process go", [&] { return sessions.End(arguments.name, kLetGoTimeout); });
  return work();
}

}  // namespace still::cli
