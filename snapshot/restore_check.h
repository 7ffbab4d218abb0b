// What must hold before a restore starts anything: found here it is one sentence, found later it is a hypervisor that
// does not start, or a guest that runs wrong. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/manifest.pb.h"
#include "session/hypervisor/host_cpu.h"
#include "session/hypervisor/qemu/qemu_cpu.h"

namespace still::snapshot {

// What this host has to offer.
struct HostFacts {
  std::string hypervisor_version;          // "7.2.22"
  std::vector<std::string> machine_types;  // That it can start.
  bool kvm = false;                        // Guests can run under KVM here.
  session::CpuOffer cpu;                   // What KVM gives them.
  session::KvmTsc tsc;
  std::vector<std::string> cpu_flags;  // The kernel's, of the processor.
  std::vector<std::string> devices;    // Of the hypervisor: "virtio-blk-pci".
  std::vector<std::string> networks;   // Its network back ends: "user".
  std::vector<std::string> cpu_models;

  // Of the machine in question.
  std::vector<std::string> planned_devices;  // What it would be started with; as Machine.devices.
  absl::Status firmware;                     // OK, or why its firmware cannot be had.
  uint64_t firmware_bytes = 0;               // As Machine.firmware_bytes.
  absl::Status vsock;                        // OK, or why it could have no vsock.
};

// What the machine needs and this host lacks, one phrase each: with these it can neither go on nor boot here.
std::vector<std::string> MissingParts(const manifestpb::Machine& machine, const HostFacts& host);

// What of the machine that was saved this host does not have, one phrase each; empty: its memory can go on here. A
// memory image only loads into the same machine: same type, same or newer hypervisor, same accelerator, the same
// devices at the same places, firmware of the same size, and for KVM every processor feature that the guest was given, and a
// time stamp counter that runs as fast where the guest tells the time by it.
std::vector<std::string> MachineDifferences(const manifestpb::Machine& saved, const HostFacts& host);

// What differs and is no reason to refuse, one sentence each.
std::vector<std::string> MachineNotes(const manifestpb::Machine& saved, const HostFacts& host);

// FAILED_PRECONDITION that names all that differs, and offers --cold where booting its disks would work.
absl::Status CheckWarm(const manifestpb::Machine& saved, const HostFacts& host);
// FAILED_PRECONDITION that names what is missing.
absl::Status CheckCold(const manifestpb::Machine& machine, const HostFacts& host);

// Whether somebody in the guest can thaw it and give it an identity of its own once its memory goes on.
enum class AgentInImage { kPresent, kAbsent };
AgentInImage AgentOf(const manifestpb::Snapshot& snapshot);

// RESOURCE_EXHAUSTED with both numbers when `needed` bytes of memory are not to be had.
absl::Status CheckMemory(uint64_t needed, uint64_t available);

// MemAvailable of /proc/meminfo under `root`, or what the control group leaves of it if that is less. UINT64_MAX when
// unknown.
uint64_t AvailableMemory(const std::string& root = "/");

}  // namespace still::snapshot
