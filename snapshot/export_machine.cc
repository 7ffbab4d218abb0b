#include "snapshot/export_machine.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "base/random.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/session_config.h"
#include "snapshot/export_place.h"
#include "snapshot/session_files.h"

namespace still::snapshot {
namespace {

using manifestpb::Image;
using manifestpb::Machine;
using session::VmConfig;

constexpr uint64_t kMaxExportedState = 256 << 20;  // 17 MiB with a graphics card.
constexpr uint32_t kGuestCid = 3;                  // The first that a guest can have.
constexpr int kStreamFd = 9;                       // One digit, as every shell can redirect.
// Numbers that no machine of ours opens; replaced by names.
constexpr int kQmpPlace = 1001;
constexpr int kConsolePlace = 1002;
constexpr int kQgaPlace = 1003;

std::string FileOf(const Image& image) {
  return image.role() == Image::ROLE_DISK ? absl::StrCat(image.name(), ".raw") : image.name();
}

bool IsWarm(const manifestpb::Snapshot& snapshot) {
  return FindImage(snapshot, Image::ROLE_RAM) != nullptr && FindImage(snapshot, Image::ROLE_DEVICE_STATE) != nullptr;
}

// In single quotes nothing means anything to a shell but the quote itself.
std::string Quoted(const std::string& word) {
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

VmConfig MachineConfig(const manifestpb::Snapshot& snapshot) {
  const Machine& machine = snapshot.machine();
  VmConfig vm{.name = "exported",
              .accelerator = machine.accelerator(),
              .machine_type = machine.machine_type(),
              .cpu_model = machine.cpu_model(),
              .vcpus = machine.vcpus(),
              .memory_bytes = machine.memory_bytes(),
              .firmware = machine.firmware(),
              .generation_id = RandomUuid()};
  if (const Image* kernel = FindImage(snapshot, Image::ROLE_KERNEL)) {
    vm.kernel = FileOf(*kernel);
    if (const Image* initrd = FindImage(snapshot, Image::ROLE_INITRD)) vm.initrd = FileOf(*initrd);
    sessionpb::SessionConfig config;
    *config.mutable_machine() = machine;
    vm.cmdline = session::AssembleCmdline(
        config, machine.vsock() ? std::optional<uint32_t>(machine.vsock_port()) : std::nullopt);
  }
  for (const manifestpb::Disk& disk : machine.disks()) {
    vm.disks.push_back({.name = disk.name(),
                        .path = absl::StrCat(disk.name(), ".raw"),
                        .format = "raw",
                        .read_only = disk.read_only(),
                        .serial = disk.serial()});
  }
  for (const manifestpb::Nic& nic : machine.nics()) {
    vm.nics.push_back({.name = nic.name(), .mac = nic.mac(), .kind = nic.kind()});
  }
  if (session::HasQgaPort({machine.devices().begin(), machine.devices().end()})) vm.qga_fd = kQgaPlace;
  return vm;
}

// Our own command line, with names in the places of descriptors. `saved`: whose memory goes on; null: the disks boot.
absl::StatusOr<std::string> CommandText(VmConfig vm, const Machine* saved) {
  std::string ram_place;
  if (saved != nullptr) {
    session::IncomingState incoming;
    STILL_ASSIGN_OR_RETURN(incoming.ram, OpenFile("/dev/null", O_RDONLY));
    STILL_ASSIGN_OR_RETURN(incoming.device_state, OpenFile("/dev/null", O_RDONLY));
    incoming.generation_id = saved->generation_id();
    ram_place = absl::StrCat("mem-path=/proc/self/fd/", incoming.ram.get());
    vm.incoming = std::move(incoming);
  }
  STILL_RETURN_IF_ERROR(session::CheckVmConfig(vm));
  std::vector<std::string> words = session::QemuCommand("", vm, {.qmp = kQmpPlace, .console = kConsolePlace});
  words.erase(words.begin());
  words.erase(std::remove(words.begin(), words.end(), "-S"), words.end());
  for (std::string& word : words) {
    if (word == absl::StrCat("socket,id=qmp,fd=", kQmpPlace)) {
      word = "socket,id=qmp,path=qmp.sock,server=on,wait=off";
    } else if (word == absl::StrCat("socket,id=console,fd=", kConsolePlace)) {
      word = "stdio,id=console,signal=off";
    } else if (word == absl::StrCat("socket,id=qga,fd=", kQgaPlace)) {
      word = "socket,id=qga,path=qga.sock,server=on,wait=off";
    } else if (word == "defer") {
      word = absl::StrCat("fd:", kStreamFd);
    } else if (!ram_place.empty()) {
      word = absl::StrReplaceAll(word, {{ram_place, "mem-path=ram"}});
    }
  }
  return absl::StrJoin(words, " ",
                       [](std::string* out, const std::string& word) { absl::StrAppend(out, Quoted(word)); });
}

class MachineExport {
 public:
  MachineExport(store::Repository& repository, const ExportMachineOptions& options)
      : repository_(repository), options_(options) {}

  absl::Status Run() {
    STILL_ASSIGN_OR_RETURN(snapshot_, repository_.FindSnapshot(options_.snapshot));
    STILL_ASSIGN_OR_RETURN(const std::string script, MachineScript(snapshot_));
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ExportPlace> place,
                           ExportPlace::Make(options_.path, ExportPlace::Kind::kDirectory));
    directory_ = place->partial();
    for (const Image& image : snapshot_.images()) STILL_RETURN_IF_ERROR(WriteImage(image));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(directory_, "run"), script, 0700));
    return place->Finish();
  }

 private:
  absl::Status WriteImage(const Image& image) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::ImageReader> reader, repository_.OpenImage(snapshot_, image.name()));
    const std::string path = JoinPath(directory_, FileOf(image));
    if (image.role() == Image::ROLE_DEVICE_STATE) {
      if (reader->size() > kMaxExportedState) return absl::DataLossError("the device state is impossibly large");
      std::string state(reader->size(), '\0');
      STILL_RETURN_IF_ERROR(reader->Read(0, absl::MakeSpan(state)));
      STILL_ASSIGN_OR_RETURN(state, RunningDeviceState(std::move(state)));
      return WriteFileAtomically(path, state);
    }
    STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDWR | O_CREAT | O_EXCL));
    STILL_RETURN_IF_ERROR(ExtendFileOrExplain(fd.get(), path, image.size()));
    auto progress = [&](uint64_t done) {
      options_.progress({.stage = absl::StrCat("export ", image.name()), .done = done, .total = image.size()});
      return options_.go_on();
    };
    STILL_RETURN_IF_ERROR(reader->RestoreTo(fd.get(), {.progress = progress}));
    return ::fsync(fd.get()) == 0 ? absl::OkStatus() : ErrnoStatus(errno, absl::StrCat("fsync ", path));
  }

  store::Repository& repository_;
  const ExportMachineOptions& options_;
  manifestpb::Snapshot snapshot_;
  std::string directory_;
};

}  // namespace

absl::StatusOr<std::string> RunningDeviceState(std::string state) {
  // migration/global_state.c of QEMU: the run state as be32 length and 100 bytes, both counting the final zero.
  constexpr absl::string_view kSection("\x0bglobalstate", 12);
  constexpr size_t kInstanceAndVersion = 8;
  constexpr absl::string_view kPaused("\0\0\0\7paused\0\0", 12);
  constexpr absl::string_view kRunning("\0\0\0\10running\0", 12);
  const size_t section = state.find(kSection.data(), 0, kSection.size());
  const size_t at = section == std::string::npos ? section : section + kSection.size() + kInstanceAndVersion;
  if (at == std::string::npos || at + kPaused.size() > state.size()) {
    return absl::DataLossError("the device state has no run state");
  }
  const absl::string_view saved = absl::string_view(state).substr(at, kPaused.size());
  if (saved != kPaused && saved != kRunning) return absl::DataLossError("the device state has an unknown run state");
  state.replace(at, kRunning.size(), kRunning.data(), kRunning.size());
  return state;
}

absl::StatusOr<std::string> MachineScript(const manifestpb::Snapshot& snapshot) {
  const Machine& machine = snapshot.machine();
  if (machine.hypervisor() != "qemu") {
    return absl::FailedPreconditionError(
        "the snapshot does not say what machine it is of; export its disks as raw or qcow2");
  }
  const bool warm = IsWarm(snapshot);
  VmConfig cold = MachineConfig(snapshot);
  std::string script = absl::StrCat(
      "#!/bin/sh\n# Snapshot ", snapshot.id(), ", exported by Stillpoint: a machine that plain QEMU starts.\n#\n",
      warm ? "#   ./run          goes on with the saved memory, once: the disks change with it\n" : "",
      "#   ./run --cold   boots the disks\n#\n# The guest's console is on the terminal, QEMU's control socket is "
      "qmp.sock. Made with QEMU ",
      machine.hypervisor_version(), "\n# (", machine.machine_type(), ", ", machine.accelerator(),
      "). Set QEMU to use another binary; what follows is added to its command line.\nset -e\n"
      "cd \"$(dirname \"$0\")\"\nQEMU=${QEMU:-qemu-system-x86_64}\n");
  STILL_ASSIGN_OR_RETURN(const std::string cold_command, CommandText(std::move(cold), /*saved=*/nullptr));
  const std::string start_cold = absl::StrCat("exec \"$QEMU\" ", cold_command, " \"$@\"\n");
  if (!warm) return absl::StrCat(script, "[ \"$1\" != --cold ] || shift\n", start_cold);
  absl::StrAppend(&script, "if [ \"$1\" = --cold ]; then\n  shift\n  touch started\n  ", start_cold, "fi\n");
  absl::StrAppend(&script, "if [ -e started ]; then\n",
                  "  echo 'run: the disks have changed since the memory was saved; use --cold, or export again' >&2\n",
                  "  exit 1\nfi\n");
  VmConfig vm = MachineConfig(snapshot);
  if (machine.vsock()) {
    vm.vsock = session::VsockAttachment{.guest_cid = kGuestCid};
    absl::StrAppend(&script, "if [ ! -e /dev/vhost-vsock ]; then\n",
                    "  echo 'run: the saved machine has a vsock device: modprobe vhost_vsock, or use --cold' >&2\n",
                    "  exit 1\nfi\n");
  }
  STILL_ASSIGN_OR_RETURN(const std::string command, CommandText(std::move(vm), &machine));
  absl::StrAppend(&script, "touch started\nexec \"$QEMU\" ", command, " \"$@\" ", kStreamFd, "<devices\n");
  return script;
}

absl::Status ExportMachine(store::Repository& repository, const ExportMachineOptions& options) {
  return MachineExport(repository, options).Run();
}

}  // namespace still::snapshot
