// What the contract suite needs of an implementation besides Vm itself: to start the counting guest on it, and to see
// from outside that the guest gets on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"

namespace still::testing {

// A snapshot as the suite holds it: files.
struct TestSnapshot {
  OwnedFd ram;
  OwnedFd device_state;
  std::vector<std::string> disks;  // Paths of raw images, in the disks' order.
};

class VmUnderTest {
 public:
  virtual ~VmUnderTest() = default;
  virtual session::Vm& vm() = 0;
  // Grows while the guest runs, stands still while it does not. Never blocks on the guest.
  virtual uint64_t Progress() = 0;
  // A raw image of a disk as it is now, for a VM that is paused: what a capture must equal.
  virtual absl::StatusOr<std::string> CopyOfDisk(const std::string& name) = 0;
  // Ends the hypervisor as a crash would.
  virtual void Crash() = 0;
};

class Implementation {
 public:
  virtual ~Implementation() = default;
  virtual std::string name() const = 0;
  // Boots the counting guest with disks "vda" and "vdb". Files go below `directory`.
  virtual absl::StatusOr<std::unique_ptr<VmUnderTest>> Boot(const std::string& directory) = 0;
  // Paused, at the snapshot's point.
  virtual absl::StatusOr<std::unique_ptr<VmUnderTest>> Restore(const std::string& directory, TestSnapshot snapshot) = 0;
};

std::unique_ptr<Implementation> MakeQemuImplementation();
// QEMU where there is no memory engine: memory is saved by its own stream while the VM runs.
std::unique_ptr<Implementation> MakeBackgroundQemuImplementation();
// QEMU where background-snapshot is refused: memory is saved while the VM is stopped.
std::unique_ptr<Implementation> MakeStoppedQemuImplementation();
std::unique_ptr<Implementation> MakeFakeImplementation();

}  // namespace still::testing
