#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/process.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/vm_under_test.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

constexpr uint64_t kQemuDiskBytes = 8 << 20;

session::VmConfig Config(const std::string& directory) {
  session::VmConfig config{
      .name = "contract", .directory = directory, .accelerator = TestAccelerator(), .memory_bytes = kGuestMemoryBytes};
  config.disks.push_back({.name = "vda", .path = JoinPath(directory, "vda.qcow2"), .format = "qcow2"});
  config.disks.push_back({.name = "vdb", .path = JoinPath(directory, "vdb.raw"), .format = "raw"});
  return config;
}

absl::Status Run(std::vector<std::string> argv) {
  STILL_ASSIGN_OR_RETURN(CommandOutput output, RunCommand({.argv = std::move(argv)}, absl::Seconds(60)));
  return output.exit.ok() ? absl::OkStatus() : absl::InternalError(output.stderr_text);
}

class QemuUnderTest : public VmUnderTest {
 public:
  QemuUnderTest(std::string directory, std::unique_ptr<session::Vm> vm)
      : directory_(std::move(directory)), vm_(std::move(vm)) {}

  session::Vm& vm() override { return *vm_; }
  uint64_t Progress() override { return FileSize(JoinPath(directory_, "console.log")).value_or(0); }
  absl::StatusOr<std::string> CopyOfDisk(const std::string& name) override {
    std::string raw = JoinPath(directory_, absl::StrCat(name, ".copy"));
    std::string disk = JoinPath(directory_, name == "vda" ? "vda.qcow2" : "vdb.raw");
    // -U: QEMU holds the image's lock, but the VM is paused and has flushed.
    STILL_RETURN_IF_ERROR(
        Run({"qemu-img", "convert", "-U", "-f", name == "vda" ? "qcow2" : "raw", "-O", "raw", disk, raw}));
    return ReadFile(raw, kQemuDiskBytes);
  }
  void Crash() override { ::kill(vm_->description().pid, SIGKILL); }

 private:
  const std::string directory_;
  const std::unique_ptr<session::Vm> vm_;
};

class QemuImplementation : public Implementation {
 public:
  explicit QemuImplementation(std::string name, session::QemuOptions options)
      : name_(std::move(name)), options_(std::move(options)) {}
  std::string name() const override { return name_; }

  absl::StatusOr<std::unique_ptr<VmUnderTest>> Boot(const std::string& directory) override {
    std::string boot = JoinPath(directory, "boot.raw");
    STILL_RETURN_IF_ERROR(MakeRawDisk(boot, kQemuDiskBytes, CountingGuest()));
    STILL_RETURN_IF_ERROR(
        Run({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", boot, JoinPath(directory, "vda.qcow2")}));
    STILL_RETURN_IF_ERROR(MakeRawDisk(JoinPath(directory, "vdb.raw"), kQemuDiskBytes, ""));
    return Start(directory, Config(directory));
  }

  absl::StatusOr<std::unique_ptr<VmUnderTest>> Restore(const std::string& directory, TestSnapshot snapshot) override {
    STILL_RETURN_IF_ERROR(
        Run({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", snapshot.disks[0], JoinPath(directory, "vda.qcow2")}));
    STILL_RETURN_IF_ERROR(Run({"cp", snapshot.disks[1], JoinPath(directory, "vdb.raw")}));
    session::VmConfig config = Config(directory);
    config.incoming =
        session::IncomingState{.ram = std::move(snapshot.ram), .device_state = std::move(snapshot.device_state)};
    return Start(directory, std::move(config));
  }

 private:
  absl::StatusOr<std::unique_ptr<VmUnderTest>> Start(const std::string& directory, session::VmConfig config) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<session::Vm> vm, session::StartQemuWith(options_, config));
    return std::unique_ptr<VmUnderTest>(std::make_unique<QemuUnderTest>(directory, std::move(vm)));
  }

  const std::string name_;
  const session::QemuOptions options_;
};

}  // namespace

std::unique_ptr<Implementation> MakeQemuImplementation() {
  return std::make_unique<QemuImplementation>("qemu", session::QemuOptions{});
}

std::unique_ptr<Implementation> MakeBackgroundQemuImplementation() {
  return std::make_unique<QemuImplementation>("qemu_background", session::QemuOptions{.memory_engine = false});
}

std::unique_ptr<Implementation> MakeStoppedQemuImplementation() {
  return std::make_unique<QemuImplementation>("qemu_stopped", session::QemuOptions{.background_memory = false});
}

}  // namespace still::testing
