// The host's processor, for guests that are given it (KVM).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::session {

// What a guest was given: as Machine.guest_cpu_features and tsc_hz in proto/manifest.proto.
struct GuestCpu {
  std::vector<std::string> features;
  uint64_t tsc_hz = 0;
};

// The "flags" of /proc/cpuinfo under `root` ("/" outside tests), sorted. Empty when they cannot be read. Some are the kernel's
// own words, and guests are not given all of them: what they are given, QEMU knows (qemu/qemu_cpu.h).
std::vector<std::string> HostCpuFlags(const std::string& root = "/");

// The same for one feature in the spellings of the kernel and of QEMU: "sse4_2", "sse4.2"; "avx512_bitalg", "avx512bitalg".
std::string CpuWord(absl::string_view feature);

// The time stamp counter that KVM gives guests here.
struct KvmTsc {
  uint64_t hz = 0;
  bool scaling = false;  // A guest can have another frequency than the host (KVM_CAP_TSC_CONTROL).
};
// Makes a VM of one processor for a moment. Errors as of /dev/kvm.
absl::StatusOr<KvmTsc> QueryKvmTsc();

}  // namespace still::session
