// Hooks: programs that bring applications to a consistent state before a freeze and let them go on after the thaw.
//
// Protocol, shared with the QEMU guest agent's fsfreeze-hook.d: an executable is called with one argument, "freeze" or
// "thaw"; exit code 0 is success. Ours are in /etc/still/hooks.d; those of the QEMU guest agent are run too, directly:
// its wrapper script swallows their failures. Each runs in a session of its own with standard input on /dev/null, and
// its process group is killed at its deadline. One that does not even end then (it hangs in the kernel) is left behind.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/process.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

class Hooks {
 public:
  virtual ~Hooks() = default;
  // In the order of freezing; thaw runs backwards.
  virtual std::vector<std::string> List() = 0;
  // Blocks until the hook has ended, its deadline has passed or `cancelled` is true (checked every few milliseconds), and
  // for a second more when it is killed and does not end. A hook that was killed or could not be started has exit code
  // -1, and its output says why; one that was left behind is not started again before it has ended.
  virtual pb::HookResult Run(const std::string& path, absl::string_view verb, absl::Duration timeout,
                             const std::function<bool()>& cancelled) = 0;
};

struct HookDirectories {
  // Where a distribution has the QEMU guest agent's hooks.
  struct Qemu {
    std::string directory;
    // The single hook beside it: the wrapper that runs the directory, unless there is no such directory. May be empty.
    std::string single;
  };
  std::string own = "/etc/still/hooks.d";
  std::vector<Qemu> qemu = {{"/etc/qemu/fsfreeze-hook.d", "/etc/qemu/fsfreeze-hook"},           // Debian, SUSE
                            {"/etc/qemu-ga/fsfreeze-hook.d", "/etc/qemu-ga/fsfreeze-hook"},     // RHEL, Fedora
                            {"/etc/qemu-kvm/fsfreeze-hook.d", "/etc/qemu-kvm/fsfreeze-hook"}};  // RHEL 7
};

class HookPrograms : public Hooks {
 public:
  // `environment` is added to the agent's for each hook.
  explicit HookPrograms(HookDirectories directories, std::vector<std::pair<std::string, std::string>> environment = {})
      : directories_(std::move(directories)), environment_(std::move(environment)) {}

  ~HookPrograms() override;

  std::vector<std::string> List() override;
  pb::HookResult Run(const std::string& path, absl::string_view verb, absl::Duration timeout,
                     const std::function<bool()>& cancelled) override;

 private:
  // Whether the hook's process of an earlier run has not ended; reaps one that has.
  bool StillHangs(const std::string& path);

  HookDirectories directories_;
  absl::Mutex mutex_;
  std::map<std::string, ChildProcess> left_behind_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<std::string, std::string>> environment_;
};

// Backups and leftovers of editors and packages, as the QEMU guest agent's wrapper skips them.
bool IsSkippedHookName(absl::string_view name);

}  // namespace still::agent
