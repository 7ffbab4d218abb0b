// FakeVm: a hypervisor of plain memory and files, for tests of what drives a Vm. It keeps the contract of
// session/hypervisor/hypervisor.h (it runs the same suite as QEMU does) and can be told to break it.
//
//   FakeVm vm({.directory = dir, .memory_bytes = 1 << 20, .disks = {{.name = "vda", .content = ...}}});
//   vm.FailNext("PinDisks", absl::UnavailableError("..."));
//   ... run the pipeline ...
//   EXPECT_TRUE(vm.running());
//   EXPECT_THAT(vm.calls(), ElementsAre("PrepareCapture", "Pause", ...));
//
// Names of calls: PrepareCapture Pause PinDisks SaveStateAndResume ExportDisks WaitForMemory Release(committed)
// Release(abandoned) Cancel, Resume, SetLink, Kill, and "resume" for every attempt to end a pause. The memory stream is
// a real one (it goes through SplitMigrationStream), the exports are real NBD. Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "session/hypervisor/hypervisor.h"

namespace still::testing {

struct FakeDisk {
  std::string name;
  std::string content;
  bool read_only = false;
};

struct FakeVmOptions {
  std::string directory;  // For the NBD socket.
  uint64_t memory_bytes = 1 << 20;
  std::vector<FakeDisk> disks;
  session::Capabilities capabilities = {
      .memory = true, .background_memory = true, .disk_pin = true, .incremental_disk = true};
  bool paused = false;       // As after a start with incoming state.
  std::string memory;        // Its content; shorter than memory_bytes: zeroes follow.
  std::string device_state;  // What the saved stream carries for its one device.
};

class FakeVm : public session::Vm {
 public:
  explicit FakeVm(FakeVmOptions options);
  ~FakeVm() override;

  // Vm.
  const session::Capabilities& capabilities() const override;
  const session::VmDescription& description() const override;
  absl::StatusOr<bool> IsPaused() override;
  absl::Status Resume() override;
  absl::Status SetLink(const std::string& nic, bool up) override;
  absl::StatusOr<std::unique_ptr<session::VmCapture>> PrepareCapture(const session::CaptureOptions& options,
                                                                     OwnedFd memory_sink) override;
  void Kill() override;
  ProcessExit WaitForExit() override;
  bool guest_shut_down() const override;

  // The script.
  // The next call of that name fails without any effect. Several are used one after the other.
  void FailNext(const std::string& call, absl::Status error);
  // Runs whenever that call is made, before it takes effect; may call anything here, e.g. Crash().
  void OnCall(const std::string& call, std::function<void()> action);
  // After this many bytes the memory stream stands still, until it is cancelled.
  void StallMemoryAfter(uint64_t bytes);
  // After this many bytes the hypervisor gives the stream up.
  void BreakMemoryAfter(uint64_t bytes);
  // Reads of an export at or beyond `offset` fail (or get no answer).
  void FailDiskReadsFrom(const std::string& disk, uint64_t offset);
  void HangDiskReadsFrom(const std::string& disk, uint64_t offset);
  // The next capture finds no bitmap that it can build on.
  void LoseBitmaps();

  // The guest. Writes wait for nothing; what is written while the VM is paused is a bug of the test.
  void WriteMemory(uint64_t address, absl::string_view bytes);
  std::string ReadMemory(uint64_t address, uint64_t size) const;
  void WriteDisk(const std::string& disk, uint64_t offset, absl::string_view bytes);
  std::string DiskContent(const std::string& disk) const;
  void PowerOff();
  void Crash();

  // What happened.
  std::vector<std::string> calls() const;
  bool running() const;
  bool capture_active() const;
  // Names of the bitmaps that record on a disk.
  std::vector<std::string> bitmaps(const std::string& disk) const;
  bool link_up(const std::string& nic) const;

  struct State;

 private:
  const std::shared_ptr<State> state_;  // Shared with captures and guards, which may outlive the Vm.
};

}  // namespace still::testing
