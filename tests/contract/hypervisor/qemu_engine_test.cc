// The memory engine on a real QEMU, byte by byte: what a capture gives is the memory that QEMU has in its pause, read from
// outside by the test itself.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "session/memory/process_memory.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

using session::CaptureOptions;
using session::PauseReport;
using session::VmCapture;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr absl::Duration kPatience = absl::Seconds(60);

class QemuEngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-engine-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    ASSERT_TRUE(MakeRawDisk(JoinPath(directory_, "vda.raw"), 8 << 20, CountingGuest()).ok());
    ASSERT_TRUE(MakeRawDisk(JoinPath(directory_, "vdb.raw"), 8 << 20, "").ok());
  }
  void TearDown() override {
    vm_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }
  void Boot(session::QemuOptions options = {}, std::optional<session::IncomingState> incoming = {}) {
    session::VmConfig config{
        .name = "engine", .directory = directory_, .accelerator = TestAccelerator(), .memory_bytes = kGuestMemoryBytes};
    for (const char* name : {"vda", "vdb"}) {
      config.disks.push_back({.name = name, .path = JoinPath(directory_, absl::StrCat(name, ".raw")), .format = "raw"});
    }
    config.incoming = std::move(incoming);
    auto vm = session::StartQemuWith(options, config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    ASSERT_TRUE(vm_->Resume().ok());
    if (!vm_->capabilities().engine_memory) GTEST_SKIP() << vm_->capabilities().engine_memory_reason;
    ASSERT_TRUE(GetsOn());
  }
  uint64_t Progress() { return FileSize(JoinPath(directory_, "console.log")).value_or(0); }
  bool GetsOn() {
    const uint64_t before = Progress();
    for (int i = 0; i < 6000; ++i) {
      if (Progress() > before + 2) return true;
      ::usleep(10'000);
    }
    return false;
  }
  // QEMU's memory as it is now: the mapping in which the guest's pattern lies.
  absl::StatusOr<std::string> MemoryOfQemu() {
    std::ifstream maps(absl::StrCat("/proc/", vm_->description().pid, "/maps"));
    for (std::string line; std::getline(maps, line);) {
      uint64_t begin = 0;
      uint64_t end = 0;
      if (!absl::StrContains(line, " rw-") || std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
      // QEMU aligns its memory; the kernel may have merged it with a neighbour.
      constexpr uint64_t kAligned = 2 << 20;
      for (uint64_t at = (begin + kAligned - 1) / kAligned * kAligned; at + kGuestMemoryBytes <= end; at += kAligned) {
        STILL_ASSIGN_OR_RETURN(
            session::ProcessMemory memory,
            session::ProcessMemory::Open({.pid = vm_->description().pid, .address = at, .bytes = kGuestMemoryBytes}));
        uint32_t word = 0;
        STILL_RETURN_IF_ERROR(memory.Read(kFilledBegin, reinterpret_cast<char*>(&word), sizeof word));
        if (word != kFilledBegin) continue;
        std::string all(kGuestMemoryBytes, '\0');
        STILL_RETURN_IF_ERROR(memory.Read(0, all.data(), all.size()));
        return all;
      }
    }
    return absl::NotFoundError("no mapping with the guest's pattern");
  }

  struct Saved {
    PauseReport report;
    std::string memory;    // As it was saved.
    std::string at_pause;  // As the test has read it.
    bool increment = false;
    uint64_t bytes_of_pages = 0;
    OwnedFd ram;
    OwnedFd device_state;
  };
  absl::StatusOr<Saved> Capture(CaptureOptions options, std::string base = {}, bool committed = true) {
    options.max_pause = kPatience;
    options.memory_stall_limit = kPatience;
    STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
    MemoryReader reader(std::move(pair.second), std::move(base));
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<VmCapture> capture, vm_->PrepareCapture(options, std::move(pair.first)));
    STILL_RETURN_IF_ERROR(capture->FlushDisks());
    STILL_ASSIGN_OR_RETURN(session::PausedVm paused, capture->Pause());
    STILL_RETURN_IF_ERROR(capture->PinDisks(paused));
    Saved saved;
    STILL_ASSIGN_OR_RETURN(saved.at_pause, MemoryOfQemu());
    STILL_ASSIGN_OR_RETURN(saved.report, capture->SaveStateAndResume(std::move(paused)));
    EXPECT_TRUE(GetsOn()) << "while its memory is saved";
    STILL_RETURN_IF_ERROR(capture->WaitForMemory(kPatience));
    STILL_RETURN_IF_ERROR(capture->Release(committed));
    STILL_RETURN_IF_ERROR(reader.Finish());
    STILL_ASSIGN_OR_RETURN(saved.memory, reader.Memory());
    saved.increment = reader.increment();
    saved.bytes_of_pages = reader.bytes_of_pages();
    saved.ram = reader.TakeRam();
    saved.device_state = reader.TakeDeviceState();
    return saved;
  }

  std::string directory_;
  std::unique_ptr<session::Vm> vm_;
};

TEST_F(QemuEngineTest, WhatIsSavedIsTheMemoryInThePause) {
  Boot();
  if (IsSkipped()) return;
  for (int i = 0; i < 3; ++i) {
    auto saved = Capture({});
    ASSERT_TRUE(saved.ok()) << saved.status();
    EXPECT_EQ(saved->report.memory_method, "engine");
    EXPECT_TRUE(saved->memory == saved->at_pause) << "save " << i;
    EXPECT_THAT(saved->report.memory_point, IsEmpty());
  }
}

TEST_F(QemuEngineTest, WithoutTheProtectionInThePauseItIsNot) {
  Boot({.leave_out_of_protection = 1});
  if (IsSkipped()) return;
  bool seen = false;
  for (int i = 0; i < 10 && !seen; ++i) {
    auto saved = Capture({});
    ASSERT_TRUE(saved.ok()) << saved.status();
    seen = saved->memory != saved->at_pause;
  }
  EXPECT_TRUE(seen);
}

TEST_F(QemuEngineTest, IncrementsAreTheMemoryInTheirPauses) {
  Boot();
  if (IsSkipped()) return;
  auto first = Capture({.track_memory = true});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->increment);
  EXPECT_THAT(first->report.memory_full_reason, HasSubstr("no earlier snapshot"));
  std::string base = first->memory;
  std::string point = first->report.memory_point;
  for (int i = 0; i < 4; ++i) {
    SCOPED_TRACE(i);
    ASSERT_TRUE(GetsOn());
    if (i == 2) {  // Somebody else's capture, and one of the disks alone.
      auto beside = Capture({});
      ASSERT_TRUE(beside.ok()) << beside.status();
      EXPECT_TRUE(beside->memory == beside->at_pause);
      EXPECT_FALSE(beside->increment);
      auto disks = vm_->PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
      ASSERT_TRUE(disks.ok()) << disks.status();
    }
    auto next = Capture({.track_memory = true, .base_memory = point}, base);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(next->increment) << next->report.memory_full_reason;
    EXPECT_THAT(next->report.memory_full_reason, IsEmpty());
    EXPECT_TRUE(next->memory == next->at_pause);
    EXPECT_LT(next->bytes_of_pages, kGuestMemoryBytes / 8);
    base = next->memory;
    point = next->report.memory_point;
  }
}

// What was written since the last committed point is not known then: all is read, and it is said why.
TEST_F(QemuEngineTest, AfterACaptureThatWasGivenUpAllIsRead) {
  Boot();
  if (IsSkipped()) return;
  auto first = Capture({.track_memory = true});
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(Capture({.track_memory = true, .base_memory = first->report.memory_point}, first->memory, false).ok());
  auto next = Capture({.track_memory = true, .base_memory = first->report.memory_point}, first->memory);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_FALSE(next->increment);
  EXPECT_THAT(next->report.memory_full_reason, HasSubstr("not been tracked"));
  EXPECT_TRUE(next->memory == next->at_pause);
  // Another repository's: its point is not the one that is tracked.
  auto other = Capture({.track_memory = true, .base_memory = "0123456789abcdef"}, first->memory);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->increment);
  EXPECT_THAT(other->report.memory_full_reason, HasSubstr("another snapshot"));
  EXPECT_TRUE(other->memory == other->at_pause);
}

// One that was prepared and given up before its pause leaves what is tracked as it is.
TEST_F(QemuEngineTest, ACaptureThatNeverPausedCostsNothing) {
  Boot();
  if (IsSkipped()) return;
  auto first = Capture({.track_memory = true});
  ASSERT_TRUE(first.ok()) << first.status();
  {
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    auto capture =
        vm_->PrepareCapture({.track_memory = true, .base_memory = first->report.memory_point}, std::move(pair->first));
    ASSERT_TRUE(capture.ok()) << capture.status();
  }
  EXPECT_TRUE(GetsOn());
  auto next = Capture({.track_memory = true, .base_memory = first->report.memory_point}, first->memory);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_TRUE(next->increment) << next->report.memory_full_reason;
  EXPECT_TRUE(next->memory == next->at_pause);
}

TEST_F(QemuEngineTest, OfAForkOnlyItsOwnPagesAreRead) {
  Boot();
  if (IsSkipped()) return;
  auto first = Capture({});
  ASSERT_TRUE(first.ok()) << first.status();
  vm_.reset();
  Boot({}, session::IncomingState{
               .ram = std::move(first->ram), .device_state = std::move(first->device_state), .memory_point = "image"});
  auto own = Capture({.base_memory = "image"}, first->memory);
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_TRUE(own->increment);
  EXPECT_TRUE(own->memory == own->at_pause);
  EXPECT_LT(own->bytes_of_pages, (kFilledEnd - kFilledBegin) / 4);
  // One that tracks begins in the same way, and the next goes on from there.
  auto tracked = Capture({.track_memory = true, .base_memory = "image"}, first->memory);
  ASSERT_TRUE(tracked.ok()) << tracked.status();
  EXPECT_TRUE(tracked->increment);
  EXPECT_THAT(tracked->report.memory_full_reason, IsEmpty());
  EXPECT_TRUE(tracked->memory == tracked->at_pause);
  auto beside = Capture({.base_memory = "image"}, first->memory);
  ASSERT_TRUE(beside.ok()) << beside.status();
  EXPECT_TRUE(beside->increment);
  EXPECT_TRUE(beside->memory == beside->at_pause);
  auto next = Capture({.track_memory = true, .base_memory = tracked->report.memory_point}, tracked->memory);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_TRUE(next->increment);
  EXPECT_TRUE(next->memory == next->at_pause);
  auto other = Capture({.base_memory = "another image"}, first->memory);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(other->increment);
  EXPECT_TRUE(other->memory == other->at_pause);
}

TEST_F(QemuEngineTest, ATrackedMachineRunsOnWhenItsEngineIsKilled) {
  Boot();
  if (IsSkipped()) return;
  auto first = Capture({.track_memory = true});
  ASSERT_TRUE(first.ok()) << first.status();
  // The engine is the only other child of this process.
  pid_t engine = 0;
  const auto tasks = ListDirectory("/proc/self/task");
  ASSERT_TRUE(tasks.ok()) << tasks.status();
  for (const std::string& task : *tasks) {
    std::ifstream list(absl::StrCat("/proc/self/task/", task, "/children"));
    for (pid_t pid; list >> pid;) {
      if (pid != vm_->description().pid) engine = pid;
    }
  }
  ASSERT_GT(engine, 0);
  ::kill(engine, SIGKILL);
  EXPECT_TRUE(GetsOn());
  auto next = Capture({.track_memory = true, .base_memory = first->report.memory_point}, first->memory);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_FALSE(next->increment);
  EXPECT_TRUE(next->memory == next->at_pause);
}

}  // namespace
}  // namespace still::testing
