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
};

// The program that would be started: `wanted`, else $STILL_QEMU, else qemu-system-x86_64. A name without a slash is
// looked up in PATH. NOT_FOUND.
absl::StatusOr<std::string> FindQemu(const std::string& wanted = "");

// Asks QEMU itself, which takes some 100 ms, and keeps the answer in the file `cache` for as long as the program stays
// the same (path, size, time of change). A cache that cannot be read or written only costs that time again.
absl::StatusOr<QemuFacts> ProbeQemu(const std::string& cache);

// "QEMU emulator version 7.2.22 (Debian ...)" -> "7.2.22". INTERNAL for anything else.
absl::StatusOr<std::string> ParseQemuVersion(absl::string_view output);
// The first word of each line of `-machine help` after its heading.
std::vector<std::string> ParseMachineTypes(absl::string_view output);

}  // namespace still::session
