// From a VmConfig to QEMU's command line: readable, and the same for the same configuration, because a saved machine
// must be started again with the same devices at the same places.
//
// Nothing here touches the host, except that a disk is looked at once to tell a block device from a file.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/qcow2_backing.h"

namespace still::session {

// Names of the main memory block. A snapshot made with one way of providing RAM loads with any other because all of
// them are given this same name.
inline constexpr char kRamBlock[] = "pc.ram";
inline constexpr char kDefaultMachineType[] = "pc-q35-7.2";

// PCI slots are fixed by kind and position, so that adding a card moves no disk.
inline constexpr size_t kMaxNics = 4;
inline constexpr size_t kMaxDisks = 16;

// Descriptors that the process inherits, under these numbers.
struct QemuDescriptors {
  int qmp = -1;      // Connected socket that QEMU serves QMP on.
  int console = -1;  // Connected socket that gets what the guest writes to its first serial port.
  // VmConfig::directory, when a disk has a backing export: a path through it is never too long for a socket's address.
  int directory = -1;
  int ram = -1;  // The file of the main memory; -1: IncomingState's own.
  // The memory is mapped by the preloaded library in its own way (qemu_memory.h); to QEMU it is shared.
  bool ram_is_handed_over = false;
  // What QEMU is to call files instead of their paths, and the images that its disks lie over, in the order of
  // VmConfig::disks, where it cannot find them by itself (qemu_confinement.h).
  std::map<std::string, std::string> names;
  std::vector<std::vector<BackingImage>> backing;
};

// INVALID_ARGUMENT with one line that says what to change; checks form, not the existence of files.
absl::Status CheckVmConfig(const VmConfig& config);

// "qboot" or "seabios", or a path. qboot starts a kernel without the seconds that SeaBIOS takes under emulation; only
// SeaBIOS can boot a disk.
std::string FirmwareOf(const VmConfig& config);
std::string MachineTypeOf(const VmConfig& config);
std::string CpuModelOf(const VmConfig& config);
// True when `devices`, as DevicesOf gives them, have a port to the guest's QEMU guest agent.
bool HasQgaPort(const std::vector<std::string>& devices);
// Whether the machine has a VMGenID device. A new one has it where its firmware survives it: qboot stops at the ACPI
// loader command with which the guest tells QEMU where the id lies. A saved one is started as it was.
bool HasGenerationId(const VmConfig& config);

// What `-netdev` calls that kind of NicConfig.
std::string NetworkBackend(const std::string& kind);
// Whether a card of it leads to anything beyond the machine.
bool ReachesANetwork(const VmConfig& config);

// The guest's devices as "virtio-blk-pci@0x8", or without a place where QEMU chooses it; in the order of QEMU's command
// line.
std::vector<std::string> DevicesOf(const VmConfig& config);
// Where the guest sees each disk, in the order of `config`: "0000:00:08.0".
std::vector<std::string> DiskAddressesOf(const VmConfig& config);

// `config` has passed CheckVmConfig.
std::vector<std::string> QemuCommand(const std::string& binary, const VmConfig& config,
                                     const QemuDescriptors& descriptors);

// Names of the block nodes and devices of disk number `index` (from 0).
std::string DiskNode(size_t index);         // "disk0": the format node that the guest's device uses.
std::string DiskDevice(size_t index);       // "disk0-dev"
std::string DiskBackendPath(size_t index);  // The object whose property `drive` is the node under the device.

}  // namespace still::session
