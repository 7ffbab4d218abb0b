// A real QEMU whose "guest" is the test: an idle machine with two disks, to which the test writes through the guest's
// own devices (HMP qemu-io -d). What the disks hold is known byte by byte.
#pragma once

#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/qemu/qemu_machine.h"
#include "tests/contract/hypervisor/qmp_proxy.h"

namespace still::testing {

class ScriptedQemu {
 public:
  static constexpr uint64_t kDiskBytes = 4 << 20;
  static constexpr size_t kDisks = 2;  // vda is qcow2, vdb raw.

  // Makes the disks in `directory` unless they are there.
  static absl::StatusOr<std::unique_ptr<ScriptedQemu>> Start(const std::string& directory);

  std::shared_ptr<session::QemuMachine> machine() const { return machine_; }
  // What QMP goes through.
  QmpProxy& proxy() { return *proxy_; }
  // Writes to a disk, as its guest would, and to the model of it.
  absl::Status Write(size_t disk, uint64_t offset, uint64_t length, uint8_t pattern);
  // A few writes of up to 200 KiB anywhere.
  absl::Status WriteAtRandom(std::mt19937_64& random);
  // What each disk must hold now.
  const std::vector<std::string>& model() const { return model_; }

  // Ends it in an orderly way, which stores the bitmaps, or as a crash.
  absl::Status Quit();
  void Crash();

 private:
  ScriptedQemu() : model_(kDisks, std::string(kDiskBytes, '\0')) {}

  std::optional<ChildProcess> process_;
  OwnedFd console_;
  std::unique_ptr<QmpProxy> proxy_;
  std::shared_ptr<session::QemuMachine> machine_;  // Shared with captures.
  std::vector<std::string> model_;
};

}  // namespace still::testing
