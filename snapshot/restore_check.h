// What must hold before a restore starts anything: found here it is one sentence, found later it is a hypervisor that
// does not start, or a guest that runs wrong. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"

namespace still::snapshot {

// What this host has to offer.
struct HostFacts {
  std::string hypervisor_version;          // "7.2.22"
  std::vector<std::string> machine_types;  // That it can start.
  std::vector<std::string> cpu_features;   // Of the processor, sorted.
  bool kvm = false;                        // Guests can run under KVM here.
};

// What of the machine that was saved this host does not have, one phrase each; empty: its memory can go on here. A
// memory image only loads into the same machine: same type, same or newer hypervisor, same accelerator, and for KVM
// every processor feature that the guest was given.
std::vector<std::string> MachineDifferences(const manifestpb::Machine& saved, const HostFacts& host);

// FAILED_PRECONDITION that names the differences and offers --cold.
absl::Status CheckMachine(const manifestpb::Machine& saved, const HostFacts& host);

// Whether somebody in the guest can thaw it and give it an identity of its own once its memory goes on.
enum class AgentInImage { kPresent, kAbsent };
AgentInImage AgentOf(const manifestpb::Snapshot& snapshot);

// RESOURCE_EXHAUSTED with both numbers when `needed` bytes of memory are not to be had.
absl::Status CheckMemory(uint64_t needed, uint64_t available);

// MemAvailable of /proc/meminfo under `root`, or what the control group leaves of it if that is less. UINT64_MAX when
// unknown.
uint64_t AvailableMemory(const std::string& root = "/");

}  // namespace still::snapshot
