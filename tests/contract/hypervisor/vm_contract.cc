#include "tests/contract/hypervisor/vm_contract.h"

#include <stdlib.h>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"

namespace still::testing {

bool Eventually(const std::function<bool()>& condition) {
  absl::Time deadline = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

void VmContract::SetUp() {
  implementation_ = GetParam()();
  source_ = Started(implementation_->Boot(NewDirectory()));
  ASSERT_NE(source_, nullptr);
  ASSERT_TRUE(GetsOn(*source_)) << "the guest does not boot";
}

void VmContract::TearDown() {
  source_.reset();
  for (const std::string& directory : directories_) EXPECT_TRUE(RemoveTree(directory).ok());
}

std::string VmContract::NewDirectory() {
  std::string pattern = JoinPath(::testing::TempDir(), "still-vm-XXXXXX");
  EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
  directories_.push_back(pattern);
  return pattern;
}

std::unique_ptr<VmUnderTest> VmContract::Started(absl::StatusOr<std::unique_ptr<VmUnderTest>> vm) {
  EXPECT_TRUE(vm.ok()) << vm.status();
  return vm.ok() ? *std::move(vm) : nullptr;
}

bool VmContract::GetsOn(VmUnderTest& vm) {
  uint64_t before = vm.Progress();
  return Eventually([&] { return vm.Progress() > before + 3; });
}

bool VmContract::RunsUnpaused(VmUnderTest& vm) {
  absl::StatusOr<bool> paused = vm.vm().IsPaused();
  return paused.ok() && !*paused && GetsOn(vm);
}

absl::StatusOr<Taken> VmContract::Take(VmUnderTest& vm, session::CaptureOptions options) {
  options.max_pause = kPatience;
  Taken taken;
  OwnedFd sink;
  if (options.memory) {
    STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
    sink = std::move(pair.first);
    taken.memory = std::make_unique<MemoryReader>(std::move(pair.second));
  }
  STILL_ASSIGN_OR_RETURN(taken.capture, vm.vm().PrepareCapture(options, std::move(sink)));
  STILL_RETURN_IF_ERROR(taken.capture->FlushDisks());
  STILL_ASSIGN_OR_RETURN(session::PausedVm paused, taken.capture->Pause());
  for (const char* name : {"vda", "vdb"}) {
    STILL_ASSIGN_OR_RETURN(std::string copy, vm.CopyOfDisk(name));
    taken.disks_at_the_point.push_back(std::move(copy));
  }
  STILL_RETURN_IF_ERROR(taken.capture->PinDisks(paused));
  STILL_ASSIGN_OR_RETURN(taken.pause, taken.capture->SaveStateAndResume(std::move(paused)));
  return taken;
}

absl::StatusOr<TestSnapshot> VmContract::Drain(Taken& taken) {
  TestSnapshot snapshot;
  STILL_ASSIGN_OR_RETURN(std::vector<session::PinnedDiskExport> exports, taken.capture->ExportDisks());
  EXPECT_EQ(exports.size(), 2u);
  std::vector<uint32_t> newest;
  for (size_t i = 0; i < exports.size(); ++i) {
    STILL_ASSIGN_OR_RETURN(std::string image, ReadExport(exports[i]));
    EXPECT_TRUE(image == taken.disks_at_the_point[i]) << "disk " << exports[i].name << " is not that of the point";
    newest.push_back(NewestRecord(image));
    snapshot.disks.push_back(JoinPath(NewDirectory(), "disk.raw"));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(snapshot.disks.back(), image));
  }
  STILL_RETURN_IF_ERROR(taken.capture->WaitForMemory(kPatience));
  STILL_RETURN_IF_ERROR(taken.memory->Finish());
  EXPECT_EQ(taken.memory->memory_bytes(), kGuestMemoryBytes);
  STILL_ASSIGN_OR_RETURN(taken.counter, taken.memory->Word(kCounterAddress));
  STILL_ASSIGN_OR_RETURN(uint32_t done, taken.memory->Word(kDoneAddress));
  EXPECT_GT(taken.counter, 0u);
  EXPECT_LE(done, newest[1]);
  EXPECT_LE(newest[1], newest[0]);
  EXPECT_LE(newest[0], taken.counter);
  EXPECT_LE(taken.counter, done + 1);
  for (uint64_t page = kFilledBegin; page < kFilledEnd; page += 64 << 10) {
    STILL_ASSIGN_OR_RETURN(uint32_t word, taken.memory->Word(page));
    if (word != page) return absl::DataLossError("a page of memory has another page's content");
  }
  snapshot.ram = taken.memory->TakeRam();
  snapshot.device_state = taken.memory->TakeDeviceState();
  return snapshot;
}

}  // namespace still::testing
