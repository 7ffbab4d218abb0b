#include "snapshot/restore_plan.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"
#include "session/hypervisor/accelerator.h"
#include "session/hypervisor/host_cpu.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_probe.h"
#include "session/session_config.h"
#include "session/vsock/vsock_host.h"
#include "snapshot/restore_check.h"
#include "snapshot/session_files.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;

// What a launch may take beside its guest: the starts of the hypervisor and the disk server, and the end of both.
constexpr absl::Duration kLaunchAllowance = absl::Seconds(60);
// The hypervisor itself, and the first pages that a session changes.
constexpr uint64_t kSessionOverhead = uint64_t{64} << 20;

// Equal content only: an image's root is the hash of its tree, and repositories do not share their keys.
std::string HotKey(store::Repository& repository, const Image& ram) {
  return absl::StrCat(repository.id().substr(0, 16), "-", absl::BytesToHexString(ram.root()));
}

bool IsHot(const HotImageOptions& options, const std::string& key) {
  return PathExists(JoinPath(options.directory, key + ".ram"));
}

// What of the image is not zero: what materialising it takes.
absl::StatusOr<uint64_t> UsedBytes(store::Repository& repository, const manifestpb::Snapshot& snapshot,
                                   const Image& image) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository.OpenImage(snapshot, image.name()));
  STILL_ASSIGN_OR_RETURN(std::vector<store::ImageExtent> extents, reader->Extents(0, reader->size()));
  uint64_t used = 0;
  for (const store::ImageExtent& extent : extents) used += extent.zero ? 0 : extent.length;
  return used;
}

absl::Status CheckRoom(store::Repository& repository, const RestorePlan& plan, const RestoreOptions& options) {
  const uint64_t available = AvailableMemory();
  uint64_t needed = kSessionOverhead * options.sessions.size();
  if (!plan.warm) {
    uint64_t guest = options.memory_bytes != 0 ? options.memory_bytes : plan.snapshot.machine().memory_bytes();
    return CheckMemory(needed + guest, available);
  }
  const Image* ram = FindImage(plan.snapshot, Image::ROLE_RAM);
  if (ram == nullptr) return absl::DataLossError("the snapshot's memory is not complete; use --cold");
  if (!options.trial && IsHot(options.hot, HotKey(repository, *ram))) return CheckMemory(needed, available);
  // Reading the image's tree takes time: only where the answer may matter.
  if (needed + ram->size() <= available) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(uint64_t used, UsedBytes(repository, plan.snapshot, *ram));
  return CheckMemory(needed + used, available);
}

absl::Status CheckOptions(const RestorePlan& plan, const RestoreOptions& options) {
  if (options.keep_identity && options.sessions.size() > 1) {
    return absl::InvalidArgumentError("only one session can keep the identity of the machine that is gone");
  }
  for (const std::string& name : options.sessions) {
    if (!options.trial) STILL_RETURN_IF_ERROR(session::CheckOrdinaryName(name));
  }
  if (!plan.warm) return absl::OkStatus();
  if (options.vcpus != 0 || options.memory_bytes != 0) {
    return absl::InvalidArgumentError("saved memory goes on with the cpus and memory it had; other sizes need --cold");
  }
  const manifestpb::Machine& machine = plan.snapshot.machine();
  if (!options.accelerator.empty() && options.accelerator != machine.accelerator()) {
    return absl::FailedPreconditionError(absl::StrCat("the memory was saved under ", machine.accelerator(),
                                                      " and cannot go on under ", options.accelerator,
                                                      "; boot the disks instead: --cold"));
  }
  const bool vsock = machine.vsock() && options.vsock_backend != sessionpb::SessionConfig::OFF;
  if (plan.snapshot.consistency().frozen_size() > 0 && !vsock) {
    return absl::FailedPreconditionError(
        "the saved memory holds frozen file systems and the session would have no vsock to thaw them; use --cold");
  }
  if (options.without_agent || (vsock && AgentOf(plan.snapshot) == AgentInImage::kPresent)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "no agent answered in this guest when the snapshot was taken: its memory would go on with the random numbers, "
      "keys, addresses and the clock of its source; boot the disks instead (--cold), or accept that (--without-agent)");
}

// A machine that was copied must not be taken for its source.
sessionpb::NewIdentity ChooseIdentity(const RestorePlan& plan, const RestoreOptions& options,
                                      const std::string& session, manifestpb::Machine& machine) {
  sessionpb::NewIdentity identity;
  identity.set_restore_id(RandomUuid());
  identity.set_keep(options.keep_identity);
  if (options.keep_identity) return identity;
  // A session's name is a DNS label but for a hyphen at its end.
  identity.set_hostname(session.substr(0, session.find_last_not_of('-') + 1));
  for (manifestpb::Nic& nic : *machine.mutable_nics()) {
    const std::string old_mac = nic.mac();
    nic.set_mac(session::RandomMac());
    // A card that is booted has its new address from the beginning.
    if (!plan.warm || old_mac.empty()) continue;
    guestpb::NicIdentity& renamed = *identity.add_nics();
    renamed.set_old_mac(old_mac);
    renamed.set_new_mac(nic.mac());
  }
  return identity;
}

// Any compatible machine: what ties it to the one that was saved is chosen anew. But disks that were booted by a firmware
// of their owner's choice may start with no other.
void MakeCold(const RestorePlan& plan, const RestoreOptions& options, manifestpb::Machine& machine) {
  machine.set_machine_type(plan.machine_type);
  machine.clear_cpu_model();
  machine.clear_accelerator();
  if (!absl::StrContains(machine.firmware(), '/')) machine.clear_firmware();
  if (machine.vcpus() == 0) machine.set_vcpus(1);
  if (machine.memory_bytes() == 0) machine.set_memory_bytes(uint64_t{512} << 20);
  if (options.vcpus != 0) machine.set_vcpus(options.vcpus);
  if (options.memory_bytes != 0) machine.set_memory_bytes(options.memory_bytes);
  if (!options.accelerator.empty()) machine.set_accelerator(options.accelerator);
}

// Imports say nothing of it: theirs is as the options say.
bool HasVsock(const manifestpb::Machine& machine, const RestoreOptions& options) {
  return options.vsock_backend != sessionpb::SessionConfig::OFF && (machine.vsock() || machine.hypervisor().empty());
}

absl::Status CheckHost(const RestoreOptions& options, const std::string& state_directory, RestorePlan& plan) {
  STILL_RETURN_IF_ERROR(MakeDirectories(state_directory));
  STILL_ASSIGN_OR_RETURN(session::QemuFacts qemu, session::ProbeQemu(JoinPath(state_directory, "qemu-facts")));
  const auto& types = qemu.machine_types;
  // "q35" is the newest of its kind, of any QEMU.
  if (!plan.warm && std::find(types.begin(), types.end(), session::kDefaultMachineType) == types.end()) {
    plan.machine_type = "q35";
  }
  // As it would be started.
  manifestpb::Machine machine = plan.snapshot.machine();
  if (!plan.warm) {
    MakeCold(plan, options, machine);
    if (!options.accelerator.empty()) STILL_RETURN_IF_ERROR(session::ChooseAccelerator(options.accelerator).status());
  }
  if (machine.disks_size() == 0) {
    for (const Image& image : plan.snapshot.images()) {
      if (image.role() == Image::ROLE_DISK) machine.add_disks()->set_name(image.name());
    }
  }
  // Snapshots of before the field.
  if (plan.warm && machine.devices().empty()) {
    for (std::string& device : session::DevicesOf(session::PlannedVm(machine, true))) {
      machine.add_devices(std::move(device));
    }
  }
  machine.set_vsock(HasVsock(machine, options));
  const session::VmConfig vm = session::PlannedVm(machine, plan.warm);

  HostFacts host{.hypervisor_version = qemu.version,
                 .machine_types = qemu.machine_types,
                 .devices = qemu.devices,
                 .networks = qemu.networks,
                 .cpu_models = qemu.cpu_models,
                 .planned_devices = session::DevicesOf(vm)};
  host.firmware = session::FindFirmware(qemu, session::FirmwareOf(vm)).status();
  host.firmware_bytes = session::FirmwareFileSize(session::FirmwareOf(vm));
  if (machine.vsock()) host.vsock = session::FindVsock(session::BackendOf(options.vsock_backend));
  if (!plan.warm) return CheckCold(machine, host);
  if (machine.accelerator() == "kvm") {
    host.kvm = session::ChooseAccelerator("kvm").ok();
    host.cpu_flags = session::HostCpuFlags();
  }
  if (host.kvm) {
    STILL_ASSIGN_OR_RETURN(host.cpu, session::ProbeKvmCpu());
    STILL_ASSIGN_OR_RETURN(host.tsc, session::QueryKvmTsc());
  }
  plan.notes = MachineNotes(machine, host);
  return CheckWarm(machine, host);
}

absl::StatusOr<MemoryImage> LoadPrivately(const std::function<absl::Status(int fd)>& fill, uint64_t size,
                                          size_t sessions) {
  OwnedFd fd(::memfd_create("still-ram", MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "size the memory image");
  STILL_RETURN_IF_ERROR(fill(fd.get()));
  return MemoryImage{.fd = std::move(fd), .shared = sessions > 1, .hot = false};
}

}  // namespace

absl::StatusOr<RestorePlan> PlanRestore(store::Repository& repository, const RestoreOptions& options,
                                        const std::string& state_directory) {
  RestorePlan plan;
  STILL_ASSIGN_OR_RETURN(plan.snapshot, repository.FindSnapshot(options.snapshot));
  const manifestpb::Machine& machine = plan.snapshot.machine();
  if (FindImage(plan.snapshot, Image::ROLE_DISK) == nullptr &&
      FindImage(plan.snapshot, Image::ROLE_KERNEL) == nullptr) {
    return absl::FailedPreconditionError("the snapshot holds nothing that could be booted");
  }
  plan.warm = !options.cold && plan.snapshot.kind() == manifestpb::Snapshot::DISK_AND_MEMORY;
  STILL_RETURN_IF_ERROR(CheckOptions(plan, options));
  STILL_RETURN_IF_ERROR(CheckHost(options, state_directory, plan));
  STILL_RETURN_IF_ERROR(CheckRoom(repository, plan, options));
  plan.agent = !options.without_agent && AgentOf(plan.snapshot) == AgentInImage::kPresent && machine.vsock() &&
               options.vsock_backend != sessionpb::SessionConfig::OFF;
  if (!plan.agent && !options.keep_identity) {
    plan.notes.emplace_back(
        "nobody in the guest gives it an identity of its own: names and keys are those of its source");
  }
  return plan;
}

sessionpb::SessionConfig ConfigFor(const RestorePlan& plan, const RestoreOptions& options, const std::string& session) {
  sessionpb::SessionConfig config;
  config.set_name(session);
  config.set_id(RandomUuid());
  // A copy is a machine of its own; what takes the place of one that is gone goes on as that one.
  config.set_machine_id(options.keep_identity && !plan.snapshot.machine_id().empty() ? plan.snapshot.machine_id()
                                                                                     : config.id());
  config.set_origin_snapshot(plan.snapshot.id());
  config.set_vsock_backend(options.vsock_backend);
  manifestpb::Machine& machine = *config.mutable_machine();
  machine = plan.snapshot.machine();
  config.set_qga_port(session::HasQgaPort({machine.devices().begin(), machine.devices().end()}));
  if (!plan.warm) MakeCold(plan, options, machine);
  if (options.trial) {
    for (manifestpb::Nic& nic : *machine.mutable_nics())
      if (nic.kind() == "user") nic.set_kind("isolated");
  }
  if (!machine.vsock() && !machine.hypervisor().empty()) config.set_vsock_backend(sessionpb::SessionConfig::OFF);

  // Booted disks that keep their identity need nothing: they are what they were.
  if (plan.agent && (plan.warm || !options.keep_identity)) {
    *config.mutable_identity() = ChooseIdentity(plan, options, session, machine);
  }
  if (plan.warm) {
    sessionpb::RestoreSource& source = *config.mutable_restore();
    source.set_snapshot_id(plan.snapshot.id());
    source.set_restore_id(config.has_identity() ? config.identity().restore_id() : RandomUuid());
    source.set_thaw(plan.snapshot.consistency().frozen_size() > 0);
  }
  const bool waits = plan.agent || config.restore().thaw();
  auto seconds = [](absl::Duration time) { return static_cast<uint32_t>(absl::ToInt64Seconds(time)); };
  config.set_agent_deadline_s(waits ? seconds(options.patience.answer) : 0);
  config.set_ready_deadline_s(waits ? seconds(options.patience.ready) : 0);
  return config;
}

std::string BootFileDirectory(const session::SessionRegistry& sessions) {
  return JoinPath(sessions.root(), "boot-files");
}

absl::StatusOr<MemoryImage> LoadMemory(store::Repository& repository, const RestorePlan& plan,
                                       const RestoreOptions& options) {
  const Image* ram = FindImage(plan.snapshot, Image::ROLE_RAM);
  if (ram == nullptr) return absl::DataLossError("the snapshot's memory is not complete; use --cold");
  auto fill = [&](int fd) { return WriteImage(repository, plan.snapshot, *ram, fd, options.progress); };
  if (options.trial) return LoadPrivately(fill, ram->size(), options.sessions.size());
  absl::StatusOr<HotImage> hot = HotImages(options.hot).Get(HotKey(repository, *ram), ram->size(), fill);
  if (hot.ok()) return MemoryImage{.fd = std::move(hot->fd), .shared = true, .hot = !hot->filled};
  // No room, or no tmpfs: these sessions can do without it.
  if (!absl::IsResourceExhausted(hot.status()) && !absl::IsFailedPrecondition(hot.status())) return hot.status();
  LogDebug("the memory image is not kept", {{"because", hot.status().ToString()}});
  return LoadPrivately(fill, ram->size(), options.sessions.size());
}

absl::StatusOr<RestoredSession> LaunchRestored(const session::SessionRegistry& sessions,
                                               const sessionpb::SessionConfig& config, session::LaunchOptions launch,
                                               const RestoreOptions& options) {
  const absl::Duration begun = Clock::Real().Monotonic();
  RestoredSession restored{.name = config.name(), .directory = sessions.Directory(config.name())};
  launch.timeout = std::max(options.patience.answer, options.patience.ready) + kLaunchAllowance;
  launch.own_unit = !options.trial;
  STILL_ASSIGN_OR_RETURN(restored.report, sessions.Launch(config, std::move(launch)));
  restored.started = Clock::Real().Monotonic() - begun;
  return restored;
}

}  // namespace still::snapshot
