// The promises of session/hypervisor/hypervisor.h, kept by every implementation.
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/contract/hypervisor/vm_under_test.h"

namespace still::testing {
namespace {

using session::CaptureOptions;
using session::PausedVm;
using session::PauseReport;
using session::PinnedDiskExport;
using session::VmCapture;

// Far more than anything takes on a loaded machine; only a failing test waits for it.
constexpr absl::Duration kPatience = absl::Seconds(60);

bool Eventually(const std::function<bool()>& condition) {
  absl::Time deadline = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

// A capture that has come to the point, and what was true there.
struct Taken {
  std::unique_ptr<VmCapture> capture;
  std::unique_ptr<MemoryReader> memory;
  std::vector<std::string> disks_at_the_point;
  PauseReport pause;
};

class VmContract : public ::testing::TestWithParam<std::unique_ptr<Implementation> (*)()> {
 protected:
  void SetUp() override {
    implementation_ = GetParam()();
    source_ = Started(implementation_->Boot(NewDirectory()));
    ASSERT_NE(source_, nullptr);
    ASSERT_TRUE(GetsOn(*source_)) << "the guest does not boot";
  }
  void TearDown() override {
    source_.reset();
    for (const std::string& directory : directories_) EXPECT_TRUE(RemoveTree(directory).ok());
  }

  std::string NewDirectory() {
    std::string pattern = JoinPath(::testing::TempDir(), "still-vm-XXXXXX");
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    directories_.push_back(pattern);
    return pattern;
  }

  std::unique_ptr<VmUnderTest> Started(absl::StatusOr<std::unique_ptr<VmUnderTest>> vm) {
    EXPECT_TRUE(vm.ok()) << vm.status();
    return vm.ok() ? *std::move(vm) : nullptr;
  }

  static bool GetsOn(VmUnderTest& vm) {
    uint64_t before = vm.Progress();
    return Eventually([&] { return vm.Progress() > before + 3; });
  }

  absl::StatusOr<Taken> Take(VmUnderTest& vm, CaptureOptions options = {}) {
    Taken taken;
    OwnedFd sink;
    if (options.memory) {
      STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
      sink = std::move(pair.first);
      taken.memory = std::make_unique<MemoryReader>(std::move(pair.second));
    }
    STILL_ASSIGN_OR_RETURN(taken.capture, vm.vm().PrepareCapture(options, std::move(sink)));
    STILL_ASSIGN_OR_RETURN(PausedVm paused, taken.capture->Pause());
    for (const char* name : {"vda", "vdb"}) {
      STILL_ASSIGN_OR_RETURN(std::string copy, vm.CopyOfDisk(name));
      taken.disks_at_the_point.push_back(std::move(copy));
    }
    STILL_RETURN_IF_ERROR(taken.capture->PinDisks(paused));
    STILL_ASSIGN_OR_RETURN(taken.pause, taken.capture->SaveStateAndResume(std::move(paused)));
    return taken;
  }

  // Drains all of it into files; checks that the disks are those of the point, and that memory and disks agree.
  absl::StatusOr<TestSnapshot> Drain(Taken& taken) {
    TestSnapshot snapshot;
    STILL_ASSIGN_OR_RETURN(std::vector<PinnedDiskExport> exports, taken.capture->ExportDisks());
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
    STILL_ASSIGN_OR_RETURN(session::MigrationStreamReport report, taken.memory->Finish());
    EXPECT_EQ(report.memory_bytes, kGuestMemoryBytes);
    STILL_ASSIGN_OR_RETURN(uint32_t counter, taken.memory->Word(kCounterAddress));
    STILL_ASSIGN_OR_RETURN(uint32_t done, taken.memory->Word(kDoneAddress));
    EXPECT_GT(counter, 0u);
    EXPECT_LE(done, newest[1]);
    EXPECT_LE(newest[1], newest[0]);
    EXPECT_LE(newest[0], counter);
    EXPECT_LE(counter, done + 1);
    snapshot.ram = taken.memory->TakeRam();
    snapshot.device_state = taken.memory->TakeDeviceState();
    return snapshot;
  }

  std::unique_ptr<Implementation> implementation_;
  std::unique_ptr<VmUnderTest> source_;
  std::vector<std::string> directories_;
};

TEST_P(VmContract, ACaptureHoldsOneInstantAndTheSourceRunsOn) {
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_TRUE(GetsOn(*source_)) << "during the drain";
  auto snapshot = Drain(*taken);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_GT(taken->pause.paused, absl::ZeroDuration());
  EXPECT_GT(taken->capture->memory_bytes_written(), kFilledEnd - kFilledBegin);
  EXPECT_TRUE(taken->capture->Release(true).ok());
  EXPECT_TRUE(GetsOn(*source_)) << "after the release";
}

TEST_P(VmContract, ARestoredVmContinuesAndCanBeCapturedAgain) {
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << taken.status();
  auto snapshot = Drain(*taken);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  auto counter = taken->memory->Word(kCounterAddress);
  ASSERT_TRUE(taken->capture->Release(true).ok());
  for (int generation = 0; generation < 2; ++generation) {
    auto restored = Started(implementation_->Restore(NewDirectory(), *std::move(snapshot)));
    ASSERT_NE(restored, nullptr);
    auto paused = restored->vm().IsPaused();
    ASSERT_TRUE(paused.ok()) << paused.status();
    EXPECT_TRUE(*paused);
    ASSERT_TRUE(restored->vm().Resume().ok());
    ASSERT_TRUE(GetsOn(*restored));
    auto again = Take(*restored);
    ASSERT_TRUE(again.ok()) << again.status();
    snapshot = Drain(*again);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  }
}

std::string NameOf(const ::testing::TestParamInfo<VmContract::ParamType>& info) { return info.param()->name(); }

INSTANTIATE_TEST_SUITE_P(All, VmContract, ::testing::Values(&MakeQemuImplementation), NameOf);

}  // namespace
}  // namespace still::testing
