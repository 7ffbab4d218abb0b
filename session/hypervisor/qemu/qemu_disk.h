// DiskPins: makes every disk of a QEMU readable as of one instant while the guest writes on.
//
// Each writable disk gets a copy-before-write filter: before the guest overwrites a cluster, the old one is copied into
// a sparse "fleecing" file. What was pinned is read over NBD through a snapshot-access node on the filter. All of it is
// built while the VM runs; the pin itself is one command a disk, which puts the filter under the guest's device:
//
//   before                     pinned                                            (behind each name: the capture's id)
//   disk0-dev                  disk0-dev
//      |                          |
//    disk0   [disk0-cbw]       disk0-cbw --(old data)--> disk0-fleece
//      |        not used          |        <-- disk0-snap <-- NBD export "vda"
//   disk0-file                  disk0 -> disk0-file
//
// Dirty bitmaps. Each capture begins a bitmap of its own *before* the pause and leaves the one of the capture that it
// builds on recording until it is released. Both therefore hold a few clusters more than the exact difference (what is
// written between begin and point; between point and release), and never one less: reading a cluster that did not
// change costs a read, missing one loses data. So nothing about bitmaps has to happen inside the pause, a capture that
// is abandoned only has to drop its own bitmap, and one that dies at any moment has spoilt nothing.
//
// Not thread-safe. The owner calls Prepare, Pin, Export, Release in this order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "base/undo.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/pin_pool.h"
#include "session/hypervisor/qemu/nbd_relay.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

class DiskPins {
 public:
  struct Options {
    std::string capture_id;     // 16 hex digits: part of all names.
    std::string repository_id;  // Owner of the bitmaps (capture_bitmaps.h).
    std::vector<std::pair<std::string, std::string>> base_bitmaps;
    // For all fleecing files of this capture; 0: only what all captures of the host may keep together (PinPool).
    uint64_t space_limit = 0;
    absl::Duration stall_limit = absl::Seconds(60);  // See CaptureOptions::disk_stall_limit.
    // False when the VM's memory will be saved by stop and migrate: QEMU then deactivates every block node, which it
    // cannot do with a filter about, so the filters are made by Pin.
    bool filters_before_pause = true;
  };

  explicit DiskPins(QemuMachine& machine) : machine_(machine) {}
  DiskPins(const DiskPins&) = delete;
  DiskPins& operator=(const DiskPins&) = delete;

  absl::Status Prepare(const Options& options);
  // Inside the pause; adds the commands that it takes to `commands`. On an error some disks may be pinned, which Release
  // undoes while the VM runs.
  absl::Status Pin(const PauseBudget& budget, std::vector<std::string>& commands);
  absl::StatusOr<std::vector<PinnedDiskExport>> Export();
  // RESOURCE_EXHAUSTED when the fleecing files have outgrown their limit, DEADLINE_EXCEEDED when a reader hangs. Between
  // Prepare and Release.
  absl::Status Check();
  // Gives everything back (capture_sweep.h); the guest's disks are as before Prepare. Idempotent. A QEMU that is gone has
  // given it back already: OK. DEADLINE_EXCEEDED: it does not answer, and what is left is to be swept later.
  absl::Status Release(bool committed);

 private:
  struct PinnedDisk {
    size_t index = 0;
    const DiskConfig* disk = nullptr;
    uint64_t size = 0;
    PinPool::File fleece;
    std::string base_bitmap;       // Usable one, or empty.
    std::string full_read_reason;  // Why the base bitmap that was asked for is not used.
    std::string new_bitmap;
    bool has_filter = false;
    bool inserted = false;
  };

  absl::Status Describe(const Options& options);
  absl::Status BeginBitmap(PinnedDisk& pin);
  absl::Status AddFilter(PinnedDisk& pin, absl::Duration deadline);
  absl::Status ExportOne(PinnedDisk& pin);
  absl::StatusOr<std::vector<std::string>> BitmapsOn(size_t index);
  absl::Status RemoveBitmaps(const PinnedDisk& pin, const std::vector<std::string>& names);
  absl::Status SettleBitmaps(const PinnedDisk& pin, bool committed);
  absl::Status StartServer(absl::Duration stall_limit);

  QemuMachine& machine_;
  std::string capture_id_;
  std::string repository_id_;
  uint64_t space_limit_ = 0;
  absl::Duration pool_checked_at_ = -absl::InfiniteDuration();  // Clock::Monotonic().
  std::vector<PinnedDisk> pins_;
  std::string server_path_;  // QEMU listens here, for the relay only.
  std::unique_ptr<NbdRelay> relay_;
};

}  // namespace still::session
