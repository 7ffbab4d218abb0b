// DiskPins: makes every disk of a QEMU readable as of one instant while the guest writes on.
//
// Each writable disk gets a copy-before-write filter: before the guest overwrites a cluster, the old one is copied into
// a sparse "fleecing" file. What was pinned is read over NBD through a snapshot-access node on the filter. All of it is
// built while the VM runs; the pin itself is one command a disk, which puts the filter under the guest's device:
//
//   before                     pinned
//   disk0-dev                  disk0-dev
//      |                          |
//    disk0   [disk0-cbw]       disk0-cbw --(old data)--> disk0-fleece
//      |        not used          |        <-- disk0-snapshot <-- NBD export "vda"
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
#include "session/hypervisor/qemu/nbd_relay.h"
#include "session/hypervisor/qemu/qemu_machine.h"

namespace still::session {

class DiskPins {
 public:
  struct Options {
    std::string capture_id;  // [a-z0-9]: part of file and bitmap names.
    std::vector<std::pair<std::string, std::string>> base_bitmaps;
    uint64_t space_limit = 0;                        // For all fleecing files together; 0: half of what is free.
    absl::Duration stall_limit = absl::Seconds(60);  // See CaptureOptions::disk_stall_limit.
    // False when the VM's memory will be saved by stop and migrate: QEMU then deactivates every block node, which it
    // cannot do with a filter about, so the filters are made by Pin.
    bool filters_before_pause = true;
  };

  explicit DiskPins(QemuMachine& machine) : machine_(machine) {}
  DiskPins(const DiskPins&) = delete;
  DiskPins& operator=(const DiskPins&) = delete;

  absl::Status Prepare(const Options& options);
  // Inside the pause; adds the commands that it takes to `commands`. On an error nothing is pinned.
  absl::Status Pin(absl::Duration command_deadline, std::vector<std::string>& commands);
  absl::StatusOr<std::vector<PinnedDiskExport>> Export();
  // RESOURCE_EXHAUSTED when the fleecing files have outgrown their limit, DEADLINE_EXCEEDED when a reader hangs. Between
  // Prepare and Release, from any thread.
  absl::Status Check() const;
  // Gives everything back, newest first; the guest's disks are as before Prepare. Idempotent. A QEMU that is gone has
  // given it back already: OK.
  absl::Status Release(bool committed);

 private:
  struct PinnedDisk {
    size_t index = 0;
    const DiskConfig* disk = nullptr;
    uint64_t size = 0;
    std::string fleece_path;
    std::string base_bitmap;       // Usable one, or empty.
    std::string full_read_reason;  // Why the base bitmap that was asked for is not used.
    std::string new_bitmap;
    bool has_fleece = false;
    bool has_filter = false;
    bool inserted = false;
    bool has_snapshot = false;
    bool exported = false;
  };

  absl::Status Describe(const Options& options);
  absl::Status BeginBitmap(PinnedDisk& pin);
  absl::Status AddFilter(PinnedDisk& pin, absl::Duration deadline);
  absl::Status ExportOne(PinnedDisk& pin);
  absl::Status Withdraw(PinnedDisk& pin);
  absl::Status SettleBitmaps(PinnedDisk& pin, bool committed);
  absl::Status StartServer(absl::Duration stall_limit);
  absl::Status StopServer();

  QemuMachine& machine_;
  std::string capture_id_;
  uint64_t space_limit_ = 0;
  std::vector<PinnedDisk> pins_;
  std::string server_path_;  // QEMU listens here, for the relay only.
  bool serving_ = false;
  std::unique_ptr<NbdRelay> relay_;
};

}  // namespace still::session
