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
#include "session/hypervisor/qemu/qemu_command.h"

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

bool Has(const std::vector<std::string>& list, absl::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

// Those of `words` that `among` lacks.
std::vector<std::string> Without(const std::vector<std::string>& words, const std::vector<std::string>& among) {
  std::vector<std::string> rest;
  for (const std::string& word : words) {
    if (!Has(among, word) && !Has(rest, word)) rest.push_back(word);
  }
  return rest;
}

// What saved memory needs of the processor.
void CompareProcessors(const manifestpb::Machine& saved, const HostFacts& host, std::vector<std::string>& differences) {
  const std::string model = saved.cpu_model().substr(0, saved.cpu_model().find(','));
  if (!model.empty() && !Has(host.cpu_models, model)) {
    differences.push_back(absl::StrCat("QEMU ", host.hypervisor_version, " has no processor ", model));
  }
  if (saved.accelerator() != "kvm") return;
  if (!host.kvm) {
    differences.push_back("it was saved under KVM, which this host does not have");
    return;
  }
  std::vector<std::string> missing =
      Without({saved.cpu_features().begin(), saved.cpu_features().end()}, host.cpu_features);
  if (missing.empty()) return;
  const size_t more = missing.size() - std::min(missing.size(), kMaxNamed);
  missing.resize(missing.size() - more);
  differences.push_back(absl::StrCat("this host's processor lacks ", absl::StrJoin(missing, ", "),
                                     more > 0 ? absl::StrCat(" and ", more, " more") : ""));
}

void CompareDevices(const manifestpb::Machine& saved, const HostFacts& host, std::vector<std::string>& differences) {
  if (!saved.ram_block().empty() && saved.ram_block() != session::kRamBlock) {
    differences.push_back(
        absl::StrCat("its memory is called ", saved.ram_block(), ", and here it would be ", session::kRamBlock));
  }
  if (saved.firmware_bytes() != 0 && host.firmware.ok() && saved.firmware_bytes() != host.firmware_bytes) {
    differences.push_back(absl::StrCat("its firmware ", saved.firmware(), " had ", saved.firmware_bytes(),
                                       " bytes, and here it has ", host.firmware_bytes));
  }
  if (saved.devices().empty()) return;
  const std::vector<std::string> devices(saved.devices().begin(), saved.devices().end());
  if (auto gone = Without(devices, host.planned_devices); !gone.empty()) {
    differences.push_back(
        absl::StrCat("it was saved with ", absl::StrJoin(gone, ", "), ", which it would not have here"));
  }
  if (auto added = Without(host.planned_devices, devices); !added.empty()) {
    differences.push_back(
        absl::StrCat("it was saved without ", absl::StrJoin(added, ", "), ", which it would have here"));
  }
}

}  // namespace

std::vector<std::string> MissingParts(const manifestpb::Machine& machine, const HostFacts& host) {
  std::vector<std::string> missing;
  std::vector<std::string> drivers;
  for (const std::string& device : host.planned_devices) drivers.push_back(device.substr(0, device.find('@')));
  if (auto lacking = Without(drivers, host.devices); !lacking.empty()) {
    missing.push_back(absl::StrCat("QEMU ", host.hypervisor_version, " has no ", absl::StrJoin(lacking, ", ")));
  }
  std::vector<std::string> networks;
  for (const manifestpb::Nic& nic : machine.nics()) networks.push_back(session::NetworkBackend(nic.kind()));
  if (auto lacking = Without(networks, host.networks); !lacking.empty()) {
    missing.push_back(
        absl::StrCat("QEMU ", host.hypervisor_version, " has no network of kind ", absl::StrJoin(lacking, ", ")));
  }
  if (!host.firmware.ok()) missing.emplace_back(host.firmware.message());
  if (!host.vsock.ok()) missing.push_back(absl::StrCat("there is no vsock: ", host.vsock.message()));
  return missing;
}

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
  if (!Has(host.machine_types, saved.machine_type())) {
    differences.push_back(
        absl::StrCat("QEMU ", host.hypervisor_version, " has no machine type ", saved.machine_type()));
  }
  CompareProcessors(saved, host, differences);
  CompareDevices(saved, host, differences);
  return differences;
}

absl::Status CheckWarm(const manifestpb::Machine& saved, const HostFacts& host) {
  std::vector<std::string> differences = MachineDifferences(saved, host);
  const std::vector<std::string> missing = MissingParts(saved, host);
  if (differences.empty() && missing.empty()) return absl::OkStatus();
  differences.insert(differences.end(), missing.begin(), missing.end());
  return absl::FailedPreconditionError(absl::StrCat(
      "the saved memory cannot go on here: ", absl::StrJoin(differences, "; "),
      missing.empty() ? "; boot the disks instead: --cold" : "; without that its disks do not boot here either"));
}

absl::Status CheckCold(const manifestpb::Machine& machine, const HostFacts& host) {
  if (!machine.hypervisor().empty() && machine.hypervisor() != kHypervisor) {
    return absl::FailedPreconditionError(
        "a snapshot of an adopted process holds no machine to start; write its disks to files with `still export`");
  }
  const std::vector<std::string> missing = MissingParts(machine, host);
  if (missing.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("this host cannot start the machine: ", absl::StrJoin(missing, "; ")));
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
