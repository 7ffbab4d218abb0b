// The lazily restored disks of one QEMU: overlays over NBD exports, completed by QEMU's own stream job.
//
// A read that the server cannot answer stops the vcpus (rerror=stop, run state "io-error"; qemu_run_state.h) and is done
// again when they go on: the guest never sees it. While a capture is under way the jobs rest, so that the pause waits for no server.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

// Of disk number `index`: the block node of what its overlay lies over ("disk0-base").
std::string LazyBaseNode(size_t index);
// The node of its overlay. Of a read-only disk it is not the one that the guest's device has: what the overlay lacks must
// be written into it all the same.
std::string LazyOverlayNode(size_t index, bool read_only);

class QemuLazyDisks : public LazyDisks {
 public:
  explicit QemuLazyDisks(std::shared_ptr<QemuMachine> machine);

  bool empty() const { return disks_.empty(); }
  absl::StatusOr<std::vector<LazyDiskState>> Query() override;
  absl::Status Hydrate(uint64_t bytes_per_second) override;
  // For a capture that is under way: the jobs rest until Query() finds that it is over.
  void Rest();

 private:
  struct Disk {
    size_t index;
    std::string name;
    std::string overlay;  // Block node.
  };
  static std::string JobId(const Disk& disk);
  // Its job goes on, if it has one that rests.
  absl::Status Wake(const Disk& disk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<LazyDiskState>> QueryLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<QemuMachine> machine_;  // Shared with the Vm and its captures.
  const std::vector<Disk> disks_;
  absl::Mutex mutex_;  // Held over a look at the disks and what follows from it.
  bool resting_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace still::session
