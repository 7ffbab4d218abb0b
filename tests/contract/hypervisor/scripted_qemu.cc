#include "tests/contract/hypervisor/scripted_qemu.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "session/hypervisor/qemu/qemu_probe.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr uint64_t kSector = 512;
constexpr uint64_t kLongestWrite = 200 << 10;

absl::Status MakeDisk(const std::string& path, const std::string& format) {
  if (PathExists(path)) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(
      CommandOutput made,
      RunCommand({.argv = {"qemu-img", "create", "-q", "-f", format, path, absl::StrCat(ScriptedQemu::kDiskBytes)}},
                 kPatience));
  return made.exit.ok() ? absl::OkStatus() : absl::InternalError(made.stderr_text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ScriptedQemu>> ScriptedQemu::Start(const std::string& directory) {
  std::unique_ptr<ScriptedQemu> qemu(new ScriptedQemu);
  session::VmConfig config{
      .name = "scripted", .directory = directory, .accelerator = TestAccelerator(), .memory_bytes = uint64_t{64} << 20};
  config.disks.push_back({.name = "vda", .path = JoinPath(directory, "vda.qcow2"), .format = "qcow2"});
  config.disks.push_back({.name = "vdb", .path = JoinPath(directory, "vdb.raw"), .format = "raw"});
  for (const session::DiskConfig& disk : config.disks) STILL_RETURN_IF_ERROR(MakeDisk(disk.path, disk.format));
  STILL_ASSIGN_OR_RETURN(const std::string program, session::FindQemu());
  STILL_ASSIGN_OR_RETURN(SocketPair qmp, MakeSocketPair());
  STILL_ASSIGN_OR_RETURN(SocketPair console, MakeSocketPair());
  qemu->console_ = std::move(console.first);
  STILL_ASSIGN_OR_RETURN(
      qemu->process_,
      ChildProcess::Start(
          {.argv = session::QemuCommand(program, config, {.qmp = qmp.second.get(), .console = console.second.get()}),
           .inherited_fds = {qmp.second.get(), console.second.get()},
           .end_with_parent = true}));
  qmp.second.Reset();
  console.second.Reset();
  qemu->machine_ = std::make_shared<session::QemuMachine>();
  session::QemuMachine& machine = *qemu->machine_;
  STILL_ASSIGN_OR_RETURN(qemu->proxy_, QmpProxy::Start(std::move(qmp.first)));
  auto on_event = [&machine](const session::QmpEvent& event) { machine.run_state.Note(event); };
  STILL_ASSIGN_OR_RETURN(machine.qmp, session::QmpClient::Connect(qemu->proxy_->TakeClient(), {.on_event = on_event}));
  STILL_RETURN_IF_ERROR(session::SetMigrationCapabilities(*machine.qmp, {{"events", true}}));
  machine.disks = config.disks;
  machine.directory = directory;
  machine.pid = qemu->process_->pid();
  machine.memory_bytes = config.memory_bytes;
  machine.capabilities = {.memory = true, .disk_pin = true, .incremental_disk = true};
  return qemu;
}

absl::Status ScriptedQemu::Write(size_t disk, uint64_t offset, uint64_t length, uint8_t pattern) {
  std::string command = absl::StrCat("qemu-io -d ", session::DiskBackendPath(disk), " \"write -P ", int{pattern}, " ",
                                     offset, " ", length, "\"");
  STILL_ASSIGN_OR_RETURN(nlohmann::json said,
                         machine_->qmp->Execute("human-monitor-command", {{"command-line", command}}, kPatience));
  std::string text = said.is_string() ? said.get<std::string>() : said.dump();
  // What it did is printed on QEMU's standard output; only what it could not even try is answered here.
  if (!text.empty()) return absl::InternalError(absl::StrCat(command, ": ", text));
  std::fill_n(model_[disk].begin() + static_cast<ptrdiff_t>(offset), length, static_cast<char>(pattern));
  return absl::OkStatus();
}

absl::Status ScriptedQemu::WriteAtRandom(std::mt19937_64& random) {
  for (uint64_t writes = random() % 6; writes > 0; --writes) {
    uint64_t length = (1 + random() % (kLongestWrite / kSector)) * kSector;
    uint64_t offset = random() % ((kDiskBytes - length) / kSector) * kSector;
    STILL_RETURN_IF_ERROR(Write(random() % kDisks, offset, length, static_cast<uint8_t>(random())));
  }
  return absl::OkStatus();
}

absl::Status ScriptedQemu::Quit() {
  machine_->qmp->Post("quit");
  return process_->Wait(kPatience).status();
}

void ScriptedQemu::Crash() {
  process_->Kill(SIGKILL).IgnoreError();
  (void)process_->Wait(kPatience);
}

}  // namespace still::testing
