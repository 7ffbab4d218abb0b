#include "session/session_config.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/name_match.h"
#include "base/names.h"
#include "base/random.h"
#include "session/hypervisor/accelerator.h"
#include "session/hypervisor/process/process_vm.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_vm.h"

namespace still::session {
namespace {

constexpr uint64_t kMemoryUnit = 2 << 20;
constexpr uint64_t kMinMemory = 32 << 20;
constexpr uint64_t kMaxMemory = uint64_t{16} << 40;
constexpr uint32_t kMaxVcpus = 512;
constexpr int kMaxDisks = 16;
constexpr char kAdopted[] = "process";
constexpr size_t kMaxCmdline = 2048;  // COMMAND_LINE_SIZE of Linux on x86.

absl::Status CheckReadable(const std::string& path, absl::string_view what) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(absl::StrCat(what, " \"", path, "\": an absolute path is needed"));
  }
  // The session stores it, and the hypervisor is told it, as text.
  if (!IsUtf8(path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Quoted(path), ": its path is not UTF-8; give it another name, or a link with one"));
  }
  if (::access(path.c_str(), R_OK) != 0) return ErrnoStatus(errno, absl::StrCat(what, " ", path));
  return absl::OkStatus();
}

// The format is declared, never probed: a guest could write a qcow2 header into its raw disk and so name any host file
// as backing file. But a file that is plainly not what it is declared to be is refused before the guest has seen it.
absl::Status CheckFormat(const sessionpb::DiskFile& disk) {
  if (disk.format() != "raw" && disk.format() != "qcow2") {
    return absl::InvalidArgumentError(
        absl::StrCat("disk ", disk.name(), ": format \"", disk.format(), "\" is not known; use raw or qcow2"));
  }
  char magic[4] = {};
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(disk.path(), O_RDONLY));
  bool is_qcow2 = ::pread(fd.get(), magic, sizeof magic, 0) == sizeof magic && std::memcmp(magic, "QFI\xfb", 4) == 0;
  if (disk.format() == "qcow2" && !is_qcow2) {
    return absl::InvalidArgumentError(
        absl::StrCat("disk ", disk.path(), " is not a qcow2 image; declare it format=raw"));
  }
  struct stat file = {};
  if (::fstat(fd.get(), &file) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", disk.path()));
  if (disk.format() == "raw" && S_ISREG(file.st_mode) && (file.st_size == 0 || file.st_size % 512 != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("disk ", disk.path(), " is no disk image: ", file.st_size,
                                                   " bytes are not a number of sectors of 512"));
  }
  return absl::OkStatus();
}

absl::Status CheckDisks(const sessionpb::SessionConfig& config) {
  if (config.disks_size() > kMaxDisks) {
    return absl::InvalidArgumentError(absl::StrCat(config.disks_size(), " disks; at most ", kMaxDisks));
  }
  if (config.disks_size() != config.machine().disks_size()) {
    return absl::InvalidArgumentError("the machine's disks and the disk files differ in number");
  }
  std::set<std::string> names;
  for (int i = 0; i < config.disks_size(); ++i) {
    const sessionpb::DiskFile& disk = config.disks(i);
    if (disk.name() != config.machine().disks(i).name()) {
      return absl::InvalidArgumentError(absl::StrCat("disk file ", disk.name(), " has no disk in the machine"));
    }
    bool good = !disk.name().empty() && disk.name().size() <= 32;
    for (char c : disk.name()) good &= absl::ascii_islower(c) || absl::ascii_isdigit(c);
    // The other images of a snapshot have fixed names.
    for (absl::string_view taken : {"ram", "devices", "kernel", "initrd", "nvram"}) good &= disk.name() != taken;
    if (!good) {
      return absl::InvalidArgumentError(absl::StrCat(
          "disk name \"", disk.name(), "\": use 1 to 32 of a-z and 0-9, but not ram, devices, kernel, initrd, nvram"));
    }
    if (!names.insert(disk.name()).second) {
      return absl::InvalidArgumentError(absl::StrCat("disk name ", disk.name(), " is used twice"));
    }
    STILL_RETURN_IF_ERROR(CheckReadable(disk.path(), "disk"));
    STILL_RETURN_IF_ERROR(CheckFormat(disk));
    if (!disk.backing_export().empty() && !config.has_disk_server()) {
      return absl::InvalidArgumentError(absl::StrCat("disk ", disk.name(), " lies over an export that nobody serves"));
    }
  }
  return absl::OkStatus();
}

// Of a process that runs already only its disks are ours to describe.
absl::Status ValidateAdopted(const sessionpb::SessionConfig& config) {
  if (config.has_restore() || !config.origin_snapshot().empty()) {
    return absl::FailedPreconditionError(
        "a snapshot of an adopted process holds no machine to start; write its disks to files with `still export`");
  }
  if (config.adopt_pid() <= 0 || config.adopt_pid() > std::numeric_limits<pid_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("pid ", config.adopt_pid(), " is not one of a process"));
  }
  if (config.vsock_backend() != sessionpb::SessionConfig::OFF) {
    return absl::InvalidArgumentError("an adopted process has no vsock of ours");
  }
  return CheckDisks(config);
}

}  // namespace

absl::Status ValidateSessionName(const std::string& name) {
  bool good = !name.empty() && name.size() <= 63 && name[0] != '-';
  for (char c : name) good &= absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-';
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("session name \"", name, "\": use 1 to 63 of a-z, 0-9 and -, not starting with -"));
}

absl::Status CheckOrdinaryName(const std::string& name) {
  STILL_RETURN_IF_ERROR(ValidateSessionName(name));
  STILL_RETURN_IF_ERROR(CheckNewName("session", name));
  if (!absl::StartsWith(name, kDrillPrefix)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("session name \"", name, "\": names that begin with ", kDrillPrefix,
                   " are of restore drills, and no schedule protects them; choose another"));
}

absl::Status ValidateConfig(const sessionpb::SessionConfig& config, bool has_ram) {
  STILL_RETURN_IF_ERROR(ValidateSessionName(config.name()));
  if (config.machine().hypervisor() == kAdopted) return ValidateAdopted(config);
  const manifestpb::Machine& machine = config.machine();
  if (config.has_identity() && config.vsock_backend() == sessionpb::SessionConfig::OFF) {
    return absl::InvalidArgumentError("without vsock nobody can give the restored guest an identity of its own");
  }
  if (config.has_restore() != has_ram) {
    return absl::InvalidArgumentError("saved memory is started by `still restore`, which brings its memory image");
  }
  if (machine.vcpus() < 1 || machine.vcpus() > kMaxVcpus) {
    return absl::InvalidArgumentError(absl::StrCat(machine.vcpus(), " cpus; use 1 to ", kMaxVcpus));
  }
  uint64_t memory = machine.memory_bytes();
  if (memory < kMinMemory || memory > kMaxMemory || memory % kMemoryUnit != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory of ", memory, " bytes; use a multiple of 2 MiB from 32 MiB to 16 TiB"));
  }
  if (machine.cmdline().size() > kMaxCmdline) {
    return absl::InvalidArgumentError(absl::StrCat("kernel command line longer than ", kMaxCmdline, " characters"));
  }
  if (machine.direct_kernel()) {
    STILL_RETURN_IF_ERROR(CheckReadable(config.kernel(), "kernel"));
    if (!config.initrd().empty()) STILL_RETURN_IF_ERROR(CheckReadable(config.initrd(), "initrd"));
  } else if (config.disks_size() == 0) {
    return absl::InvalidArgumentError("nothing to boot: give a kernel or a disk");
  }
  return CheckDisks(config);
}

absl::StatusOr<VmConfig> BaseVmConfig(const sessionpb::SessionConfig& config, const std::string& directory) {
  const manifestpb::Machine& machine = config.machine();
  VmConfig vm;
  vm.name = config.name();
  vm.directory = directory;
  vm.sessions = std::filesystem::path(directory).parent_path();
  if (machine.hypervisor() == kAdopted) {
    vm.adopt_pid = static_cast<pid_t>(config.adopt_pid());
  } else {
    STILL_ASSIGN_OR_RETURN(Accelerator accelerator, ChooseAccelerator(machine.accelerator()));
    vm.accelerator = accelerator.name;
  }
  vm.machine_type = machine.machine_type();
  vm.cpu_model = machine.cpu_model();
  vm.vcpus = machine.vcpus();
  vm.memory_bytes = machine.memory_bytes();
  vm.firmware = machine.firmware();
  if (machine.direct_kernel()) {
    vm.kernel = config.kernel();
    vm.initrd = config.initrd();
  }
  for (int i = 0; i < config.disks_size(); ++i) {
    vm.disks.push_back({.name = config.disks(i).name(),
                        .path = config.disks(i).path(),
                        .format = config.disks(i).format(),
                        .read_only = machine.disks(i).read_only(),
                        .serial = machine.disks(i).serial(),
                        .backing_export = config.disks(i).backing_export(),
                        .backing_socket = kDiskServerSocket});
  }
  for (const manifestpb::Nic& nic : machine.nics()) {
    vm.nics.push_back({.name = nic.name(), .mac = nic.mac(), .kind = nic.kind(), .link_up = !config.has_identity()});
  }
  vm.generation_id = config.id();
  return vm;
}

VmConfig PlannedVm(const manifestpb::Machine& machine, bool saved_memory) {
  VmConfig vm;
  vm.firmware = machine.firmware();
  if (machine.direct_kernel()) vm.kernel = "kernel";
  for (const manifestpb::Disk& disk : machine.disks()) vm.disks.push_back({.name = disk.name()});
  for (const manifestpb::Nic& nic : machine.nics()) vm.nics.push_back({.name = nic.name(), .kind = nic.kind()});
  if (machine.vsock()) vm.vsock.emplace();
  if (HasQgaPort({machine.devices().begin(), machine.devices().end()})) vm.qga_fd = 0;  // Any: nothing is started.
  vm.generation_id = "new";
  if (saved_memory) vm.incoming.emplace().generation_id = machine.generation_id();
  return vm;
}

VsockBackend BackendOf(sessionpb::SessionConfig::VsockBackend backend) {
  if (backend == sessionpb::SessionConfig::KERNEL) return VsockBackend::kKernel;
  if (backend == sessionpb::SessionConfig::USERSPACE) return VsockBackend::kUserspace;
  return VsockBackend::kAutomatic;
}

uint64_t FirmwareFileSize(const std::string& firmware) {
  return absl::StartsWith(firmware, "/") ? FileSize(firmware).value_or(0) : 0;
}

std::string AssembleCmdline(const sessionpb::SessionConfig& config, std::optional<uint32_t> vsock_port) {
  std::string cmdline = "console=ttyS0 panic=-1";
  if (vsock_port.has_value()) absl::StrAppend(&cmdline, " still.port=", *vsock_port);
  if (!config.machine().cmdline().empty()) absl::StrAppend(&cmdline, " ", config.machine().cmdline());
  return cmdline;
}

absl::StatusOr<std::function<absl::StatusOr<std::unique_ptr<Vm>>(const VmConfig&)>> HypervisorStarter(
    const std::string& hypervisor) {
  if (hypervisor.empty() || hypervisor == "qemu") return StartQemu;
  if (hypervisor == kAdopted) return AdoptProcess;
  return absl::NotFoundError(absl::StrCat("hypervisor \"", hypervisor, "\" is not known; there are: qemu, process"));
}

std::string RandomMac() {
  // IEEE 802: bit 1 of the first byte marks a locally administered address, bit 0 a group.
  uint8_t bytes[6];
  RandomBytes(bytes, sizeof bytes);
  bytes[0] = static_cast<uint8_t>((bytes[0] & 0xfc) | 0x02);
  return absl::StrJoin(bytes, ":",
                       [](std::string* out, uint8_t b) { absl::StrAppend(out, absl::Hex(b, absl::kZeroPad2)); });
}

sessionpb::SessionEnd FailedStart(const absl::Status& why) {
  sessionpb::SessionEnd end;
  end.set_kind(sessionpb::SessionEnd::FAILED_TO_START);
  end.set_error(std::string(why.message()));
  return end;
}

std::string DescribeEnd(const sessionpb::SessionEnd& end) {
  switch (end.kind()) {
    case sessionpb::SessionEnd::EXITED:
      return absl::StrCat("exited with code ", end.exit_code());
    case sessionpb::SessionEnd::STOPPED:
      return end.by_force() ? "stopped by force" : "stopped";
    case sessionpb::SessionEnd::TIMED_OUT:
      return "timed out";
    case sessionpb::SessionEnd::CRASHED:
      return absl::StrCat("crashed: ", end.error());
    case sessionpb::SessionEnd::POWERED_OFF:
      return "powered off";
    case sessionpb::SessionEnd::KILLED:
      return "killed";
    case sessionpb::SessionEnd::HOST_RESTARTED:
      return "ended with its host";
    case sessionpb::SessionEnd::FAILED_TO_START:
      return absl::StrCat("did not start: ", end.error());
    default:
      return "not ended";
  }
}

bool EndedOnPurpose(const sessionpb::SessionEnd& end) {
  switch (end.kind()) {
    case sessionpb::SessionEnd::EXITED:
    case sessionpb::SessionEnd::STOPPED:
    case sessionpb::SessionEnd::TIMED_OUT:
    case sessionpb::SessionEnd::POWERED_OFF:
      return true;
    default:
      return false;
  }
}

}  // namespace still::session
