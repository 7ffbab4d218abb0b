// The hypervisor edge: what a session asks of the process that runs its VM. One implementation a folder (qemu/,
// process/, vz/), one fake (tests/support/fake_vm.h), one contract suite that all of them run
// (tests/contract/hypervisor).
//
// Capabilities declare what one can do; nothing asks which it is. Nothing here knows guests, agents or repositories.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/disk_state.h"
#include "session/hypervisor/host_cpu.h"
#include "session/hypervisor/vm_config.h"

namespace still::session {

struct Capabilities {
  bool memory = false;                   // Memory and devices can be saved at all.
  bool background_memory = false;        // ... while the VM runs on; else the pause lasts as long as the copy.
  std::string background_memory_reason;  // Why not, and what would change it.
  bool engine_memory = false;            // ... by the memory engine: the pause does not grow with the memory.
  std::string engine_memory_reason;      // Why not, and what would change it.
  // About how long the VM stands still for its memory where it cannot be saved in the background.
  absl::Duration stopped_memory_pause = absl::ZeroDuration();
  bool disk_pin = false;  // Disks can be read as of the point while the VM runs on.
  bool incremental_disk = false;
};

// What a snapshot must remember to start a compatible machine; fixed once the VM runs.
struct VmDescription {
  std::string hypervisor;    // "qemu"
  std::string version;       // "7.2.22"
  std::string machine_type;  // Versioned: "pc-q35-7.2".
  std::string cpu_model;
  std::string accelerator;
  std::string firmware;
  std::string ram_block;             // "pc.ram"
  std::string device_state_format;   // "qemu-migration-3"
  bool generation_id = false;        // Has a VMGenID device.
  std::vector<std::string> devices;  // What the guest has, with its place: "virtio-blk-pci@0x8".
  // Where the guest sees each disk of the configuration, in its order: "0000:00:08.0". Empty: not known.
  std::vector<std::string> disk_addresses;
  GuestCpu cpu;  // Where the guest is given the host's processor (KVM).
  pid_t pid = -1;
  std::vector<std::string> command;
};

class Vm;

// Proof that the VM is paused: what is only legal then takes `const PausedVm&`. Whoever holds it must end the pause
// with Resume() or hand it to VmCapture::SaveStateAndResume; the destructor resumes as a logged safety net. Move-only.
class PausedVm {
 public:
  explicit PausedVm(std::function<absl::Status()> resume) : resume_(std::move(resume)) {}
  PausedVm(PausedVm&& other) noexcept : resume_(std::exchange(other.resume_, nullptr)) {}
  PausedVm& operator=(PausedVm&&) = delete;
  PausedVm(const PausedVm&) = delete;
  ~PausedVm();

  // The VM runs when this returns OK. On an error the VM is in an unknown state; the destructor tries once more.
  absl::Status Resume();
  // The pause has been ended in another way (the hypervisor resumed by itself).
  void Forget() { resume_ = nullptr; }

 private:
  std::function<absl::Status()> resume_;
};

struct CaptureOptions {
  bool memory = true;
  // Whose captures these are. Bitmaps belong to a repository, so that several can build on their own.
  std::string repository_id;
  // Disk name -> bitmap id of an earlier capture; absent disks are read in full.
  std::vector<std::pair<std::string, std::string>> base_bitmaps;
  // How long the VM may stand still, all commands of the pause together. What takes longer is undone: the VM runs, and
  // the capture has failed with DEADLINE_EXCEEDED.
  absl::Duration max_pause = absl::Seconds(2);
  // The time that memory takes where it cannot be saved in the background does not count.
  bool stop_for_memory = false;
  // A reader of the memory stream that takes nothing for so long is given up: the guest waits for it.
  absl::Duration memory_stall_limit = absl::Seconds(1);
  // A reader of the disks that takes nothing of what it asked for, for so long, is cut off (CheckPins). Nobody waits for it.
  absl::Duration disk_stall_limit = absl::Seconds(60);
  // Note what is written to memory from this point on (PauseReport::memory_point), so that the next capture need not read the
  // rest. The guest's first write to each page then waits for some 50 us. Only with engine_memory.
  bool track_memory = false;
  // The memory_point that the reader has: a capture's with track_memory, or the image's that the VM was started over. When that
  // is tracked, or mapped, only pages written since come (OnIncrement); else all, and with track_memory PauseReport says why.
  std::string base_memory;
  // Space for what the guest overwrites while its disks are pinned; 0: half of what is free when the capture begins.
  uint64_t pin_space_limit = 0;
};

struct PinnedDiskExport {
  std::string name;
  uint64_t size = 0;
  std::string nbd_socket;
  std::string nbd_export;
  std::string dirty_context;     // NBD meta context of what changed since the base bitmap; empty: read everything.
  std::string full_read_reason;  // Why a base bitmap that was asked for is not used.
  std::string bitmap;            // Id of the bitmap that starts at this point; empty without incremental_disk.
};

struct PauseReport {
  absl::Duration paused;              // By the hypervisor's own event times where it gives them, else ours.
  std::vector<std::string> commands;  // Sent inside the pause, in this order.
  // How memory was saved: "engine", "background", "stopped", or "none"; and why not in a better way, where there is one.
  std::string memory_method;
  std::string memory_method_reason;
  // With "engine": pages that were protected once more inside the pause, and how long that took.
  uint64_t reprotected_pages = 0;
  absl::Duration protecting;
  // With track_memory: the next capture's base_memory, once this one is released as committed; why all memory was read.
  std::string memory_point;
  std::string memory_full_reason;
};

// One capture of one VM: prepared while the VM runs, then Pause -> PinDisks -> SaveStateAndResume, then drained from
// the exports and the memory stream, then released. At most one at a time on a VM. Calls are made from one thread, in
// this order; Cancel() may come from any thread at any time. Destroying it releases it as abandoned and leaves the VM
// running.
class VmCapture {
 public:
  virtual ~VmCapture() = default;

  // Writes the disk images back while the VM runs, so that its stop finds little to write. To be called right before
  // the pause. DEADLINE_EXCEEDED when it takes longer than the pause may: the pause would have.
  virtual absl::Status FlushDisks() { return absl::OkStatus(); }
  // Stop the VM. Returns when no vcpu runs. On an error the VM runs.
  virtual absl::StatusOr<PausedVm> Pause() = 0;
  // Pins every disk at this instant, all in this one pause. On an error the capture can only be released, after the VM
  // runs again.
  virtual absl::Status PinDisks(const PausedVm& paused) = 0;
  // Begins to write the memory stream into the sink given to PrepareCapture and ends the pause: as soon as memory is
  // write-protected ("background"), or when all of it is written ("stopped"), or at once when no memory was asked for.
  // On an error the VM runs again (or `paused` tried everything) and the capture can only be released.
  virtual absl::StatusOr<PauseReport> SaveStateAndResume(PausedVm paused) = 0;
  // Makes what PinDisks pinned readable over NBD. The VM runs.
  virtual absl::StatusOr<std::vector<PinnedDiskExport>> ExportDisks() = 0;
  // Whether the pins can be kept: RESOURCE_EXHAUSTED when they take more space than allowed, DEADLINE_EXCEEDED when a
  // reader of the disks hangs. The capture should then be abandoned, before a full disk does it. To be asked every now
  // and then until Release; costs a few system calls.
  virtual absl::Status CheckPins() { return absl::OkStatus(); }
  // Blocks until the hypervisor has written the whole memory stream (OK) or given up. CANCELLED after Cancel().
  // DEADLINE_EXCEEDED when nothing was written for `stall_limit`: the stream is then cancelled, because the guest's
  // writes to memory that is not yet saved wait for it.
  virtual absl::Status WaitForMemory(absl::Duration stall_limit) = 0;
  // Bytes written into the memory stream so far. Thread-safe.
  virtual uint64_t memory_bytes_written() const = 0;
  // Takes the pins away. `committed`: the next capture may build on this one's bitmaps; else they are merged back, so
  // that the next one misses nothing. Idempotent.
  virtual absl::Status Release(bool committed) = 0;
  // Makes the calls above fail with CANCELLED as soon as they safely can. Thread-safe, idempotent.
  virtual void Cancel() = 0;
};

// A running VM. Thread-safe unless said otherwise. The destructor ends the VM by force and leaves no process behind.
class Vm {
 public:
  virtual ~Vm() = default;

  virtual const Capabilities& capabilities() const = 0;
  virtual const VmDescription& description() const = 0;
  // True while no vcpu runs. UNAVAILABLE when the hypervisor does not answer.
  virtual absl::StatusOr<bool> IsPaused() = 0;
  // Starts the vcpus of a VM that was started with incoming state, or heals one that was found paused. Idempotent.
  // FAILED_PRECONDITION in a capture's pause, which is that one's to end.
  virtual absl::Status Resume() = 0;
  // Nothing when it runs, a capture has paused it, or others may pause it too. UNAVAILABLE, DEADLINE_EXCEEDED: no answer.
  virtual absl::StatusOr<std::optional<Standstill>> FindStandstill() { return std::nullopt; }
  // Gives back what an ended capture could not, because the hypervisor did not answer. To be called every now and then;
  // costs nothing when there is nothing.
  virtual absl::Status Tidy() { return absl::OkStatus(); }
  virtual absl::Status SetLink(const std::string& nic, bool up) = 0;
  // Null when no disk was started with a backing export.
  virtual LazyDisks* lazy_disks() { return nullptr; }
  // Everything that can be done while the VM runs (fleecing files, NBD server, parameters, descriptors, priming), and
  // the undo of all of it. `memory_sink`: a connected socket for the memory stream; invalid without memory.
  virtual absl::StatusOr<std::unique_ptr<VmCapture>> PrepareCapture(const CaptureOptions& options,
                                                                    OwnedFd memory_sink) = 0;
  // Asks the VM to end (by force, at once: the guest is not asked). Returns without waiting.
  virtual void Kill() = 0;
  // Blocks until the hypervisor's process has ended; callable again and from several threads.
  virtual ProcessExit WaitForExit() = 0;
  // True when the guest powered itself off (not Kill, not a crash). Meaningful after the exit.
  virtual bool guest_shut_down() const = 0;
};

}  // namespace still::session
