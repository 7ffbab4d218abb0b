// Whom QEMU runs as, and what it is given then.
//
// A QEMU that root starts runs as a user of its own: a number that no other process has, without groups and capabilities. It
// may open nothing of root's. Everything it needs is opened here and handed over as descriptors, and in its directory it may
// connect to the sockets and write the files that were made for it. What it was not given is out of reach for a guest that
// escapes into it, other guests' QEMUs included.
//
// QEMU reads and maps its descriptors by the names /proc/self/fd/N, which the preloaded library makes descriptors of
// (session/vsock/device/preload_files.cc).
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/qcow2_backing.h"

namespace still::session {

// nullopt: QEMU runs as we do, and `reason` says why: we are not root, or something of this host stands against it.
struct QemuUser {
  std::optional<ProcessUser> user;
  std::string reason;
};
// The user for this process's hypervisors: processes that live at the same time have different ones. Tries it out, by starting
// `test` as that user. `binary`: as for FindQemu.
QemuUser ChooseQemuUser(const std::string& binary = "");

class QemuConfinement {
 public:
  // Logs why it cannot be confined, for root. The errors are those of the configuration's files.
  static absl::StatusOr<QemuConfinement> Create(const std::string& binary, const VmConfig& config, int directory_fd);

  const std::optional<ProcessUser>& user() const { return user_; }
  // What QEMU is to call these files instead of their paths.
  const std::map<std::string, std::string>& names() const { return names_; }
  // Of each of VmConfig::disks: what QEMU would find by itself, had it the right to. Empty lists when it has.
  const std::vector<std::vector<BackingImage>>& backing() const { return backing_; }
  // What QEMU calls VmConfig::directory.
  std::string directory_name() const;
  // The descriptor of the saved memory that QEMU is to have in place of `ram`: it can change no image that others share.
  int ram(const VmConfig& config) const { return ram_.valid() ? ram_.get() : config.incoming->ram.get(); }
  // Into the description of the process. Borrowed: this object must live until it has started.
  void AddTo(ProcessOptions& process) const;
  // QEMU has its descriptors: ours go, or the locks of its disks would outlive it.
  void HandedOver();

 private:
  absl::Status GiveFiles(const VmConfig& config);
  absl::Status GiveDisks(const VmConfig& config);
  absl::Status Give(const std::string& path, int flags);
  absl::Status GiveRam(const VmConfig& config);
  absl::Status GiveDevices(const VmConfig& config);
  absl::Status OpenDirectory(const VmConfig& config);

  std::optional<ProcessUser> user_;
  std::string library_;
  int directory_fd_ = -1;
  std::map<std::string, std::string> names_;
  std::vector<std::vector<BackingImage>> backing_;
  std::vector<OwnedFd> given_;
  OwnedFd ram_;
  std::vector<std::pair<std::string, std::string>> environment_;
};

}  // namespace still::session
