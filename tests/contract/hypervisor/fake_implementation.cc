#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/file.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/vm_under_test.h"
#include "tests/support/fake_vm.h"

namespace still::testing {
namespace {

constexpr uint64_t kDiskBytes = 1 << 20;

std::string WordBytes(uint32_t word) { return std::string(reinterpret_cast<const char*>(&word), sizeof word); }

// The counting guest in C++: one turn of its loop whenever somebody looks.
class FakeUnderTest : public VmUnderTest {
 public:
  explicit FakeUnderTest(FakeVmOptions options) : vm_(std::move(options)) {}

  session::Vm& vm() override { return vm_; }
  uint64_t Progress() override {
    uint32_t counter;
    std::memcpy(&counter, vm_.ReadMemory(kCounterAddress, sizeof counter).data(), sizeof counter);
    if (!vm_.running()) return counter;
    std::string next = WordBytes(++counter);
    vm_.WriteMemory(kCounterAddress, next);
    vm_.WriteDisk("vda", (1 + counter % kRecordSectors) * kSectorBytes, next);
    vm_.WriteDisk("vdb", (1 + counter % kRecordSectors) * kSectorBytes, next);
    vm_.WriteMemory(kDoneAddress, next);
    return counter;
  }
  absl::StatusOr<std::string> CopyOfDisk(const std::string& name) override { return vm_.DiskContent(name); }
  void Crash() override { vm_.Crash(); }

 private:
  FakeVm vm_;
};

class FakeImplementation : public Implementation {
 public:
  std::string name() const override { return "fake"; }

  absl::StatusOr<std::unique_ptr<VmUnderTest>> Boot(const std::string& directory) override {
    FakeVmOptions options{.directory = directory, .memory_bytes = kGuestMemoryBytes, .device_state = "cold"};
    options.memory.resize(kFilledEnd);
    for (uint64_t page = kFilledBegin; page < kFilledEnd; page += 4096) {
      std::memcpy(options.memory.data() + page, &page, sizeof page);
    }
    options.disks = {{.name = "vda", .content = std::string(kDiskBytes, '\0')},
                     {.name = "vdb", .content = std::string(kDiskBytes, '\0')}};
    return std::unique_ptr<VmUnderTest>(std::make_unique<FakeUnderTest>(std::move(options)));
  }

  absl::StatusOr<std::unique_ptr<VmUnderTest>> Restore(const std::string& directory, TestSnapshot snapshot) override {
    FakeVmOptions options{
        .directory = directory, .memory_bytes = kGuestMemoryBytes, .paused = true, .device_state = "restored"};
    options.memory.resize(kGuestMemoryBytes);
    STILL_RETURN_IF_ERROR(PReadExactly(snapshot.ram.get(), options.memory.data(), kGuestMemoryBytes, 0, "ram"));
    for (size_t i = 0; i < snapshot.disks.size(); ++i) {
      STILL_ASSIGN_OR_RETURN(std::string content, ReadFile(snapshot.disks[i], kDiskBytes));
      options.disks.push_back({.name = i == 0 ? "vda" : "vdb", .content = std::move(content)});
    }
    return std::unique_ptr<VmUnderTest>(std::make_unique<FakeUnderTest>(std::move(options)));
  }
};

}  // namespace

std::unique_ptr<Implementation> MakeFakeImplementation() { return std::make_unique<FakeImplementation>(); }

}  // namespace still::testing
