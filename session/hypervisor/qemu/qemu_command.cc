#include "session/hypervisor/qemu/qemu_command.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "nlohmann/json.hpp"
#include "session/hypervisor/qemu/qemu_lazy_disk.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr uint64_t kMemoryAlignment = 2u << 20;
constexpr size_t kMaxDiskName = 32;
constexpr size_t kMaxSerial = 20;  // virtio specification 1.1, 5.2.6.1: VIRTIO_BLK_ID_BYTES.

// How long a read of a lazily restored disk waits for a server that is being started again before the guest is held. A
// capture's pause may have to wait as long, so it is short.
constexpr int kReconnectSeconds = 3;

// PCI slots on the root bus. 0x00 is the host bridge, 0x1f the chipset.
constexpr int kSerialSlot = 0x01;
constexpr int kRngSlot = 0x02;
constexpr int kVsockSlot = 0x03;
constexpr int kFirstNicSlot = 0x04;
constexpr int kFirstDiskSlot = 0x08;
static_assert(kFirstNicSlot + static_cast<int>(kMaxNics) <= kFirstDiskSlot);
static_assert(kFirstDiskSlot + static_cast<int>(kMaxDisks) <= 0x1f);

constexpr char kQgaPort[] = "virtserialport";

// In QEMU's key=value lists a comma in a value is doubled.
std::string Escaped(const std::string& value) { return absl::StrReplaceAll(value, {{",", ",,"}}); }

bool IsName(const std::string& text) {
  return !text.empty() && text.size() <= kMaxDiskName && std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c);
  });
}

bool IsMac(const std::string& text) {
  if (text.size() != 17) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (i % 3 == 2 ? c != ':' : !absl::ascii_isxdigit(c)) return false;
  }
  return true;
}

std::string DumpJson(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string NameOf(const std::string& path, const QemuDescriptors& descriptors) {
  auto name = descriptors.names.find(path);
  return name == descriptors.names.end() ? path : name->second;
}

void AddMachine(const VmConfig& config, const QemuDescriptors& descriptors, std::vector<std::string>& argv) {
  std::string machine = MachineTypeOf(config);
  uint64_t mebibytes = config.memory_bytes >> 20;
  if (config.incoming.has_value() || descriptors.ram_is_handed_over) {
    const bool shared = descriptors.ram_is_handed_over || config.incoming->share_ram;
    const int ram = descriptors.ram < 0 ? config.incoming->ram.get() : descriptors.ram;
    // Without the second of these the block would be called after the object's path and no stream of ours would find it.
    // Aligned, a large page of the host can be one of the guest's (KVM).
    argv.insert(argv.end(),
                {"-object", absl::StrCat("memory-backend-file,id=", kRamBlock,
                                         ",x-use-canonical-path-for-ramblock-id=off,align=2M,size=", mebibytes,
                                         "M,share=", shared ? "on" : "off", ",mem-path=/proc/self/fd/", ram)});
    absl::StrAppend(&machine, ",memory-backend=", kRamBlock);
  }
  argv.insert(argv.end(), {"-machine", machine});
  argv.insert(argv.end(), {"-accel", config.accelerator == "tcg" ? "tcg,thread=multi" : config.accelerator});
  argv.insert(argv.end(), {"-cpu", CpuModelOf(config)});
  argv.insert(argv.end(), {"-smp", absl::StrCat(config.vcpus)});
  argv.insert(argv.end(), {"-m", absl::StrCat(mebibytes, "M")});
}

void AddBoot(const VmConfig& config, const QemuDescriptors& descriptors, std::vector<std::string>& argv) {
  std::string firmware = FirmwareOf(config);
  if (firmware == "qboot") {
    argv.insert(argv.end(), {"-bios", "qboot.rom"});
  } else if (firmware != "seabios") {
    argv.insert(argv.end(), {"-bios", NameOf(firmware, descriptors)});
  }
  // Also for saved memory, which has its kernel in it: after a reset the firmware asks for it.
  if (config.kernel.empty()) return;
  argv.insert(argv.end(), {"-kernel", NameOf(config.kernel, descriptors)});
  if (!config.initrd.empty()) argv.insert(argv.end(), {"-initrd", NameOf(config.initrd, descriptors)});
  if (!config.cmdline.empty()) argv.insert(argv.end(), {"-append", config.cmdline});
}

const char* FileDriver(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISBLK(info.st_mode) ? "host_device" : "file";
}

// What an image lies over, from `at` on: the value of its "backing". Null at the end of the chain.
json BackingNode(const std::vector<BackingImage>& chain, size_t at, const QemuDescriptors& descriptors) {
  if (at == chain.size()) return nullptr;
  json file = {
      {"driver", FileDriver(chain[at].path)}, {"filename", NameOf(chain[at].path, descriptors)}, {"read-only", true}};
  json node = {{"driver", chain[at].format}, {"file", std::move(file)}, {"read-only", true}};
  if (chain[at].format == "qcow2") node["backing"] = BackingNode(chain, at + 1, descriptors);
  return node;
}

// `boot`: the firmware starts from it; with a kernel of our own QEMU takes that place itself.
void AddDisk(const DiskConfig& disk, size_t index, bool boot, const QemuDescriptors& descriptors,
             std::vector<std::string>& argv) {
  std::string file_node = absl::StrCat(DiskNode(index), "-file");
  const bool lazy = !disk.backing_export.empty();
  const bool writable = lazy || !disk.read_only;
  json file = {{"driver", FileDriver(disk.path)},
               {"node-name", file_node},
               {"filename", NameOf(disk.path, descriptors)},
               {"read-only", !writable},
               // With "auto" (the default) a disk on a file system without locks would be used unprotected.
               {"locking", "on"}};
  json format = {{"driver", disk.format},
                 {"node-name", lazy ? LazyOverlayNode(index, disk.read_only) : DiskNode(index)},
                 {"file", file_node},
                 {"read-only", !writable},
                 {"discard", "unmap"}};
  std::string device = absl::StrFormat("virtio-blk-pci,id=%s,drive=%s,bus=pcie.0,addr=0x%x", DiskDevice(index),
                                       DiskNode(index), kFirstDiskSlot + static_cast<int>(index));
  if (!disk.serial.empty()) absl::StrAppend(&device, ",serial=", Escaped(disk.serial));
  if (boot) absl::StrAppend(&device, ",bootindex=0");
  if (lazy) {
    json base = {{"driver", "nbd"},
                 {"node-name", LazyBaseNode(index)},
                 {"read-only", true},
                 {"export", disk.backing_export},
                 {"reconnect-delay", kReconnectSeconds},
                 {"server",
                  {{"type", "unix"},
                   {"path", absl::StrCat("/proc/self/fd/", descriptors.directory, "/", disk.backing_socket)}}}};
    argv.insert(argv.end(), {"-blockdev", DumpJson(base)});
    format["backing"] = LazyBaseNode(index);
    absl::StrAppend(&device, ",rerror=stop");
  } else if (index < descriptors.backing.size() && !descriptors.backing[index].empty()) {
    format["backing"] = BackingNode(descriptors.backing[index], 0, descriptors);
  }
  // The guest is held, and asks again when it goes on. Reported to it, the error would end its file system.
  if (writable) absl::StrAppend(&device, ",werror=stop");
  argv.insert(argv.end(), {"-blockdev", DumpJson(file), "-blockdev", DumpJson(format)});
  if (lazy && disk.read_only) {
    json guard = {
        {"driver", "raw"}, {"node-name", DiskNode(index)}, {"file", LazyOverlayNode(index, true)}, {"read-only", true}};
    argv.insert(argv.end(), {"-blockdev", DumpJson(guard)});
  }
  argv.insert(argv.end(), {"-device", device});
}

void AddNic(const NicConfig& nic, size_t index, std::vector<std::string>& argv) {
  // A hub of its own with nothing else on it is a card without a network.
  std::string netdev = absl::StrCat(NetworkBackend(nic.kind), ",id=", nic.name);
  if (nic.kind == "none") absl::StrAppend(&netdev, ",hubid=", index);
  if (nic.kind == "isolated") absl::StrAppend(&netdev, ",restrict=on");
  // Without romfile= the card's boot ROM would be one more block of memory in every snapshot.
  std::string device = absl::StrFormat("virtio-net-pci,id=nic%d-dev,netdev=%s,romfile=,bus=pcie.0,addr=0x%x", index,
                                       nic.name, kFirstNicSlot + static_cast<int>(index));
  if (!nic.mac.empty()) absl::StrAppend(&device, ",mac=", nic.mac);
  argv.insert(argv.end(), {"-netdev", netdev, "-device", device});
}

// The name is the one that qemu-ga looks for. Port 0 is kept for consoles; a guest prepares queues for every port.
void AddQgaPort(int fd, std::vector<std::string>& argv) {
  argv.insert(argv.end(), {"-chardev", absl::StrCat("socket,id=qga,fd=", fd)});
  argv.insert(argv.end(), {"-device", absl::StrFormat("virtio-serial-pci,id=serial,max_ports=2,bus=pcie.0,addr=0x%x",
                                                      kSerialSlot)});
  argv.insert(argv.end(), {"-device", absl::StrCat(kQgaPort,
                                                   ",id=qga-port,bus=serial.0,nr=1,chardev=qga,"
                                                   "name=org.qemu.guest_agent.0")});
}

void AddDevices(const VmConfig& config, const QemuDescriptors& descriptors, std::vector<std::string>& argv) {
  if (config.qga_fd >= 0) AddQgaPort(config.qga_fd, argv);
  argv.insert(argv.end(), {"-device", absl::StrFormat("virtio-rng-pci,id=rng,bus=pcie.0,addr=0x%x", kRngSlot)});
  if (config.vsock.has_value()) {
    // seqpacket=off: the kernel's and the user-space back end must look the same to a guest that moves between them.
    std::string device = absl::StrFormat("vhost-vsock-pci,id=vsock,guest-cid=%d,seqpacket=off,bus=pcie.0,addr=0x%x",
                                         config.vsock->guest_cid, kVsockSlot);
    if (config.vsock->vhost_fd >= 0) absl::StrAppend(&device, ",vhostfd=", config.vsock->vhost_fd);
    argv.insert(argv.end(), {"-device", device});
  }
  if (HasGenerationId(config)) {
    argv.insert(argv.end(), {"-device", absl::StrCat("vmgenid,id=generation,guid=", config.generation_id)});
  }
  for (size_t i = 0; i < config.nics.size(); ++i) AddNic(config.nics[i], i, argv);
  for (size_t i = 0; i < config.disks.size(); ++i)
    AddDisk(config.disks[i], i, i == 0 && config.kernel.empty(), descriptors, argv);
}

absl::Status CheckDisks(const VmConfig& config) {
  if (config.disks.size() > kMaxDisks) {
    return absl::InvalidArgumentError(absl::StrCat(config.disks.size(), " disks: at most ", kMaxDisks));
  }
  std::set<std::string> names;
  for (const DiskConfig& disk : config.disks) {
    if (!IsName(disk.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("disk name \"", disk.name, "\": use 1 to 32 lower-case letters and digits"));
    }
    if (!names.insert(disk.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("disk ", disk.name, " is given twice"));
    }
    if (disk.format != "raw" && disk.format != "qcow2") {
      return absl::InvalidArgumentError(
          absl::StrCat("disk ", disk.name, ": format \"", disk.format, "\" is not known; use raw or qcow2"));
    }
    if (disk.path.empty()) return absl::InvalidArgumentError(absl::StrCat("disk ", disk.name, " has no path"));
    if (!disk.backing_export.empty() && disk.format != "qcow2") {
      return absl::InvalidArgumentError(absl::StrCat("disk ", disk.name, ": only a qcow2 file lies over an export"));
    }
    if (disk.serial.size() > kMaxSerial) {
      return absl::InvalidArgumentError(
          absl::StrCat("disk ", disk.name, ": a serial number has at most ", kMaxSerial, " characters"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckNics(const VmConfig& config) {
  if (config.nics.size() > kMaxNics) {
    return absl::InvalidArgumentError(absl::StrCat(config.nics.size(), " network cards: at most ", kMaxNics));
  }
  std::set<std::string> names;
  for (const NicConfig& nic : config.nics) {
    if (!IsName(nic.name) || !absl::ascii_islower(static_cast<unsigned char>(nic.name[0]))) {
      return absl::InvalidArgumentError(
          absl::StrCat("network card \"", nic.name, "\": use 1 to 32 lower-case letters and digits, a letter first"));
    }
    if (!names.insert(nic.name).second) {
      return absl::InvalidArgumentError(absl::StrCat("network card ", nic.name, " is given twice"));
    }
    if (!nic.mac.empty() && !IsMac(nic.mac)) {
      return absl::InvalidArgumentError(
          absl::StrCat("network card ", nic.name, ": \"", nic.mac, "\" is not a MAC address like 52:54:00:12:34:56"));
    }
    if (nic.kind != "user" && nic.kind != "isolated" && nic.kind != "none") {
      return absl::InvalidArgumentError(absl::StrCat("network card ", nic.name, ": kind \"", nic.kind,
                                                     "\" is not known; use user, isolated or none"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckVmConfig(const VmConfig& config) {
  if (config.accelerator != "kvm" && config.accelerator != "tcg") {
    return absl::InvalidArgumentError(absl::StrCat("accelerator \"", config.accelerator, "\": use kvm or tcg"));
  }
  if (config.vcpus < 1 || config.vcpus > 255) {
    return absl::InvalidArgumentError(absl::StrCat(config.vcpus, " vcpus: use 1 to 255"));
  }
  if (config.memory_bytes == 0 || config.memory_bytes % kMemoryAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory of ", config.memory_bytes, " bytes: use a positive multiple of 2 MiB"));
  }
  if (config.kernel.empty()) {
    if (!config.initrd.empty() || !config.cmdline.empty()) {
      return absl::InvalidArgumentError("an initrd or a kernel command line is given without a kernel");
    }
    if (config.disks.empty() && !config.incoming.has_value()) {
      return absl::InvalidArgumentError("nothing to boot: give a kernel or a disk");
    }
  }
  if (config.incoming.has_value() && (!config.incoming->ram.valid() || !config.incoming->device_state.valid())) {
    return absl::InvalidArgumentError("saved state without a memory image or without device state");
  }
  STILL_RETURN_IF_ERROR(CheckDisks(config));
  return CheckNics(config);
}

std::string FirmwareOf(const VmConfig& config) {
  if (!config.firmware.empty()) return config.firmware;
  return config.kernel.empty() ? "seabios" : "qboot";
}

std::string MachineTypeOf(const VmConfig& config) {
  return config.machine_type.empty() ? kDefaultMachineType : config.machine_type;
}

std::string CpuModelOf(const VmConfig& config) {
  if (!config.cpu_model.empty()) return config.cpu_model;
  return config.accelerator == "kvm" ? "host" : "max";
}

bool HasGenerationId(const VmConfig& config) {
  if (config.generation_id.empty()) return false;
  return config.incoming.has_value() ? config.incoming->generation_id : FirmwareOf(config) != "qboot";
}

bool HasQgaPort(const std::vector<std::string>& devices) {
  return std::find(devices.begin(), devices.end(), kQgaPort) != devices.end();
}

std::string NetworkBackend(const std::string& kind) { return kind == "none" ? "hubport" : "user"; }

bool ReachesANetwork(const VmConfig& config) {
  return std::any_of(config.nics.begin(), config.nics.end(), [](const NicConfig& nic) { return nic.kind == "user"; });
}

std::vector<std::string> DiskAddressesOf(const VmConfig& config) {
  std::vector<std::string> addresses;
  for (size_t i = 0; i < config.disks.size(); ++i) {
    addresses.push_back(absl::StrFormat("0000:00:%02x.0", kFirstDiskSlot + static_cast<int>(i)));
  }
  return addresses;
}

std::vector<std::string> DevicesOf(const VmConfig& config) {
  std::vector<std::string> argv;
  AddDevices(config, {}, argv);
  std::vector<std::string> devices;
  for (size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] != "-device") continue;
    const std::vector<absl::string_view> words = absl::StrSplit(argv[i + 1], ',');
    std::string& device = devices.emplace_back(words[0]);
    // The first: what the user chose himself, such as a serial number, comes later.
    auto place = std::find_if(words.begin(), words.end(), [](auto word) { return absl::StartsWith(word, "addr="); });
    if (place != words.end()) absl::StrAppend(&device, "@", absl::StripPrefix(*place, "addr="));
  }
  return devices;
}

std::vector<std::string> QemuCommand(const std::string& binary, const VmConfig& config,
                                     const QemuDescriptors& descriptors) {
  std::vector<std::string> argv = {binary, "-name", absl::StrCat("guest=", Escaped(config.name), ",debug-threads=on")};
  argv.insert(argv.end(), {"-no-user-config", "-nodefaults", "-display", "none"});
  argv.insert(argv.end(), {"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"});
  if (!config.generation_id.empty()) argv.insert(argv.end(), {"-uuid", config.generation_id});
  AddMachine(config, descriptors, argv);
  AddBoot(config, descriptors, argv);
  argv.insert(argv.end(), {"-chardev", absl::StrCat("socket,id=qmp,fd=", descriptors.qmp)});
  argv.insert(argv.end(), {"-mon", "chardev=qmp,mode=control"});
  argv.insert(argv.end(), {"-chardev", absl::StrCat("socket,id=console,fd=", descriptors.console)});
  argv.insert(argv.end(), {"-serial", "chardev:console"});
  AddDevices(config, descriptors, argv);
  bool link_down = std::any_of(config.nics.begin(), config.nics.end(), [](const NicConfig& n) { return !n.link_up; });
  if (config.incoming.has_value()) argv.insert(argv.end(), {"-incoming", "defer"});
  // Paused at first where something has to be done before the guest's first instruction.
  if (config.incoming.has_value() || link_down) argv.push_back("-S");
  return argv;
}

std::string DiskNode(size_t index) { return absl::StrCat("disk", index); }

std::string DiskDevice(size_t index) { return absl::StrCat(DiskNode(index), "-dev"); }

std::string DiskBackendPath(size_t index) {
  return absl::StrCat("/machine/peripheral/", DiskDevice(index), "/virtio-backend");
}

}  // namespace still::session
