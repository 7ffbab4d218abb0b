// Hooks: programs that bring applications to a consistent state before a freeze and let them go on after the thaw.
//
// Protocol, shared with the QEMU guest agent's fsfreeze-hook.d: an executable is called with one argument, "freeze" or
// "thaw"; exit code 0 is success. Ours are in /etc/still/hooks.d; those in /etc/qemu/fsfreeze-hook.d are run too,
// directly: QEMU's wrapper script swallows their failures. Each runs in a session of its own with standard input on
// /dev/null, and its process group is killed at its deadline.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

class Hooks {
 public:
  virtual ~Hooks() = default;
  // In the order of freezing; thaw runs backwards.
  virtual std::vector<std::string> List() = 0;
  // Blocks until the hook has ended, its deadline has passed or `cancelled` is true (checked every few milliseconds).
  // A hook that was killed or could not be started has exit code -1, and its output says why.
  virtual pb::HookResult Run(const std::string& path, absl::string_view verb, absl::Duration timeout,
                             const std::function<bool()>& cancelled) = 0;
};

struct HookDirectories {
  std::string own = "/etc/still/hooks.d";
  std::string qemu = "/etc/qemu/fsfreeze-hook.d";
  // QEMU's single hook; it is the wrapper that runs the directory above, unless there is no such directory.
  std::string qemu_single = "/etc/qemu/fsfreeze-hook";
};

class HookPrograms : public Hooks {
 public:
  // `environment` is added to the agent's for each hook.
  explicit HookPrograms(HookDirectories directories, std::vector<std::pair<std::string, std::string>> environment = {})
      : directories_(std::move(directories)), environment_(std::move(environment)) {}

  std::vector<std::string> List() override;
  pb::HookResult Run(const std::string& path, absl::string_view verb, absl::Duration timeout,
                     const std::function<bool()>& cancelled) override;

 private:
  HookDirectories directories_;
  std::vector<std::pair<std::string, std::string>> environment_;
};

// Backups and leftovers of editors and packages, as the QEMU guest agent's wrapper skips them.
bool IsSkippedHookName(absl::string_view name);

}  // namespace still::agent
