// What the QEMU of this host is, without starting a VM.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace still::session {

struct QemuFacts {
  std::string binary;                      // Its path.
  std::string version;                     // "7.2.22"
  std::vector<std::string> machine_types;  // "pc-q35-7.2"; aliases too.
  std::vector<std::string> devices;        // "virtio-blk-pci"
  std::vector<std::string> networks;       // Its network back ends: "user".
  std::vector<std::string> cpu_models;     // "max"
  std::vector<std::string> data_folders;   // Where it looks for firmware.
};

// The program that would be started: `wanted`, else $STILL_QEMU, else qemu-system-x86_64. A name without a slash is
// looked up in PATH. NOT_FOUND.
absl::StatusOr<std::string> FindQemu(const std::string& wanted = "");

// Asks QEMU itself, which takes some 100 ms, and keeps the answer in the file `cache` for as long as the program stays
// the same (path, size, time of change). A cache that cannot be read or written only costs that time again.
absl::StatusOr<QemuFacts> ProbeQemu(const std::string& cache);

// The file of a firmware as VmConfig names it ("qboot", "seabios", a path). NOT_FOUND says what to install.
absl::StatusOr<std::string> FindFirmware(const QemuFacts& facts, const std::string& firmware);

// "QEMU emulator version 7.2.22 (Debian ...)" -> "7.2.22". INTERNAL for anything else.
absl::StatusOr<std::string> ParseQemuVersion(absl::string_view output);
// The first word of each line of `-machine help` after its heading.
std::vector<std::string> ParseMachineTypes(absl::string_view output);
// name "virtio-blk-pci", bus PCI, ... -> "virtio-blk-pci"
std::vector<std::string> ParseDevices(absl::string_view output);
// One a line, after a heading.
std::vector<std::string> ParseNetworks(absl::string_view output);
// "x86 Nehalem  Intel Core i7 ..."; since QEMU 9 without the first word. A list of features follows.
std::vector<std::string> ParseCpuModels(absl::string_view output);

}  // namespace still::session
