#include "snapshot/restore_check.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"

namespace still::snapshot {
namespace {

constexpr char kHypervisor[] = "qemu";
constexpr char kDeviceStateFormat[] = "qemu-migration-3";
constexpr size_t kMaxNamed = 8;  // Processor features told one by one.

// Major and minor number: what a stable release changes does not matter to saved devices.
std::pair<uint32_t, uint32_t> Release(const std::string& version) {
  std::vector<std::string> parts = absl::StrSplit(version, '.');
  std::pair<uint32_t, uint32_t> release{0, 0};
  (void)absl::SimpleAtoi(parts[0], &release.first);  // What is not a number counts as 0: older than everything.
  if (parts.size() > 1) (void)absl::SimpleAtoi(parts[1], &release.second);
  return release;
}

uint64_t ReadNumber(const std::string& path, uint64_t otherwise) {
  auto text = ReadFile(path, 64);
  uint64_t value = 0;
  return text.ok() && absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &value) ? value : otherwise;
}

}  // namespace

std::vector<std::string> MachineDifferences(const manifestpb::Machine& saved, const HostFacts& host) {
  if (saved.hypervisor() != kHypervisor || saved.device_state_format() != kDeviceStateFormat) {
    return {absl::StrCat("it was saved by ", saved.hypervisor(), " (", saved.device_state_format(),
                         "), and this host has ", kHypervisor, " (", kDeviceStateFormat, ")")};
  }
  std::vector<std::string> differences;
  if (Release(host.hypervisor_version) < Release(saved.hypervisor_version())) {
    differences.push_back(absl::StrCat("it was saved by QEMU ", saved.hypervisor_version(), ", newer than the ",
                                       host.hypervisor_version, " of this host"));
  }
  if (std::find(host.machine_types.begin(), host.machine_types.end(), saved.machine_type()) ==
      host.machine_types.end()) {
    differences.push_back(
        absl::StrCat("QEMU ", host.hypervisor_version, " has no machine type ", saved.machine_type()));
  }
  if (saved.accelerator() != "kvm") return differences;
  if (!host.kvm) {
    differences.push_back("it was saved under KVM, which this host does not have");
    return differences;
  }
  std::vector<std::string> missing;
  for (const std::string& feature : saved.cpu_features()) {
    if (!std::binary_search(host.cpu_features.begin(), host.cpu_features.end(), feature)) missing.push_back(feature);
  }
  if (!missing.empty()) {
    size_t more = missing.size() - std::min(missing.size(), kMaxNamed);
    missing.resize(missing.size() - more);
    differences.push_back(absl::StrCat("this host's processor lacks ", absl::StrJoin(missing, ", "),
                                       more > 0 ? absl::StrCat(" and ", more, " more") : ""));
  }
  return differences;
}

absl::Status CheckMachine(const manifestpb::Machine& saved, const HostFacts& host) {
  std::vector<std::string> differences = MachineDifferences(saved, host);
  if (differences.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the saved memory cannot go on here: ", absl::StrJoin(differences, "; "), "; boot the disks instead: --cold"));
}

AgentInImage AgentOf(const manifestpb::Snapshot& snapshot) {
  // Snapshots of before the field: only an agent can have frozen anything.
  bool present = !snapshot.machine().guest_agent().empty() || snapshot.consistency().frozen_size() > 0;
  return present ? AgentInImage::kPresent : AgentInImage::kAbsent;
}

absl::Status CheckMemory(uint64_t needed, uint64_t available) {
  if (needed <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("too little memory on this host: the restore needs ", needed >> 20,
                                                   " MiB and ", available >> 20,
                                                   " MiB are available; stop a session, or boot the disks with less "
                                                   "memory: --cold --memory"));
}

uint64_t AvailableMemory(const std::string& root) {
  constexpr uint64_t kUnknown = std::numeric_limits<uint64_t>::max();
  uint64_t available = kUnknown;
  auto text = ReadFile(JoinPath(root, "proc/meminfo"), 64 << 10);
  if (text.ok()) {
    for (absl::string_view line : absl::StrSplit(*text, '\n')) {
      uint64_t kibibytes = 0;
      if (absl::ConsumePrefix(&line, "MemAvailable:") &&
          absl::SimpleAtoi(absl::StripSuffix(absl::StripAsciiWhitespace(line), " kB"), &kibibytes)) {
        available = kibibytes << 10;
      }
    }
  }
  // In a container: control group version 2 shows its own limit at its root.
  uint64_t limit = ReadNumber(JoinPath(root, "sys/fs/cgroup/memory.max"), kUnknown);
  uint64_t used = ReadNumber(JoinPath(root, "sys/fs/cgroup/memory.current"), 0);
  if (limit == kUnknown) return available;
  return std::min(available, limit - std::min(limit, used));
}

}  // namespace still::snapshot
