// Sandbox: real file systems of the test's own, in a mount namespace of its own, with a watchdog.
//
// A freeze that goes wrong would stand the whole machine still, so three things keep it inside: the namespace and its
// mounts are the test's; SandboxFreezer refuses every mount that is not below the sandbox's directory; and the
// watchdog, a process that touches none of these file systems, thaws, unmounts and removes everything there when the
// test dies or stops calling Alive() for a while.
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"
#include "guest-agent/disk_survey.h"
#include "guest-agent/kernel_freezer.h"

namespace still::agent {

class Sandbox {
 public:
  // Null, with the reason in `skip_reason`, where there are no rights or no loop devices. Call while single-threaded.
  static std::unique_ptr<Sandbox> Make(std::string& skip_reason);
  Sandbox(const Sandbox&) = delete;
  Sandbox& operator=(const Sandbox&) = delete;
  // Thaws and unmounts everything below the directory, removes it, and ends the watchdog.
  ~Sandbox();

  const std::string& path() const { return path_; }
  std::string operator/(absl::string_view name) const;
  // Tells the watchdog that all is well for the next thirty seconds.
  void Alive();

  // A new file system of this type in an image file `image` (below the sandbox), mounted at `name`.
  // CHECKs: without its file systems the test is pointless.
  void MountNew(const std::string& fs_type, const std::string& image, const std::string& name,
                const std::string& options = "loop");
  // mount(8) and umount(8) with these arguments.
  void Mount(std::vector<std::string> arguments);
  void Unmount(std::vector<std::string> arguments);
  void MakeDirectory(const std::string& name);
  // Between two tests.
  void ThawAndUnmountAll();

 private:
  Sandbox(std::string path, pid_t watchdog, OwnedFd life_line);

  std::string path_;
  pid_t watchdog_;
  OwnedFd life_line_;
};

// The kernel's freezer, shown nothing but the sandbox.
class SandboxFreezer : public KernelFreezer {
 public:
  explicit SandboxFreezer(const Sandbox& sandbox) : sandbox_(sandbox) {}
  absl::StatusOr<MountSurvey> Survey() override;
  absl::StatusOr<std::unique_ptr<FileSystemHandle>> Open(int mount_id, const std::string& path) override;

 private:
  const Sandbox& sandbox_;
};

// For KernelDisks: the loop devices over the sandbox's files are the machine's disks, and nothing else is looked at.
KernelDisks::Sources SandboxDisks(const Sandbox& sandbox);

// Who else might freeze or thaw. 0 or errno.
int FreezeBehindItsBack(const std::string& mount_point);
int ThawBehindItsBack(const std::string& mount_point);
// By trying: EBUSY. (A freeze that succeeds is undone at once.)
bool IsFrozen(const std::string& mount_point);

// A process that creates a file below `directory` and ends: it stands still there while the file system is frozen.
class Writer {
 public:
  explicit Writer(const std::string& directory);
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer();
  // In uninterruptible sleep: waiting for the thaw.
  bool IsBlocked() const;
  bool HasEnded();

 private:
  pid_t pid_;
  bool ended_ = false;
};

}  // namespace still::agent
