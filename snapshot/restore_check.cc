#include "snapshot/restore_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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
// As far from the wanted frequency as KVM lets a guest be without scaling (its tsc_tolerance_ppm).
constexpr double kTscTolerance = 250e-6;

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

bool TellsTimeByTsc(const manifestpb::Machine& saved) {
  return saved.clock_source() == manifestpb::Machine::CLOCK_SOURCE_TSC;
}

// The features that the guest was given and would not be given here. What this QEMU has no word for is left out: then it
// says nothing about it.
std::vector<std::string> LackingFeatures(const manifestpb::Machine& saved, const HostFacts& host) {
  std::map<std::string, bool> offer;
  for (const auto& [feature, given] : host.cpu) offer[session::CpuWord(feature)] |= given;
  auto lacks = [&offer](const std::string& feature) {
    auto found = offer.find(session::CpuWord(feature));
    return found != offer.end() && !found->second;
  };
  std::vector<std::string> lacking;
  for (const std::string& feature : saved.guest_cpu_features()) {
    if (lacks(feature)) lacking.push_back(feature);
  }
  if (!saved.guest_cpu_features().empty()) return lacking;
  // Before the field: flags of the source's processor, whether the guest was given them or not. What this host's processor
  // has and KVM does not give was not given there either.
  for (const std::string& flag : saved.cpu_features()) {
    if (lacks(flag) && !Has(host.cpu_flags, flag)) lacking.push_back(flag);
  }
  return lacking;
}

// Empty: a guest's time stamp counter runs here as it did, as far as anybody knows.
std::string TscDifference(const manifestpb::Machine& saved, const HostFacts& host) {
  if (saved.accelerator() != "kvm" || saved.tsc_hz() == 0 || host.tsc.hz == 0 || host.tsc.scaling) return "";
  const double ratio = static_cast<double>(host.tsc.hz) / static_cast<double>(saved.tsc_hz());
  if (std::abs(ratio - 1) <= kTscTolerance) return "";
  return absl::StrFormat("its processor's counter ran at %.3f MHz, and here it runs at %.3f MHz and cannot be scaled",
                         static_cast<double>(saved.tsc_hz()) / 1e6, static_cast<double>(host.tsc.hz) / 1e6);
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
  if (std::string tsc = TscDifference(saved, host); !tsc.empty() && TellsTimeByTsc(saved)) {
    differences.push_back(absl::StrCat(tsc, ", by which its guest tells the time"));
  }
  std::vector<std::string> missing = LackingFeatures(saved, host);
  if (missing.empty()) return;
  const size_t more = missing.size() - std::min(missing.size(), kMaxNamed);
  missing.resize(missing.size() - more);
  differences.push_back(absl::StrCat("KVM gives guests here no ", absl::StrJoin(missing, ", "),
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

std::vector<std::string> MachineNotes(const manifestpb::Machine& saved, const HostFacts& host) {
  const std::string tsc = TscDifference(saved, host);
  if (tsc.empty() || TellsTimeByTsc(saved)) return {};
  const bool known = saved.clock_source() != manifestpb::Machine::CLOCK_SOURCE_UNKNOWN;
  return {absl::StrCat(tsc, known ? "; its guest does not tell the time by it"
                                  : "; if its guest tells the time by it, its clock runs wrong")};
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
