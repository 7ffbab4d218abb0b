// A real QEMU with a guest that counts, stopped by a signal in the middle of a capture for longer than anybody waits, as
// in a frozen control group: when it goes on, so does its guest, and the next capture is like any other.
#include <signal.h>
#include <stdlib.h>

#include <thread>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "session/vm_keeper.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

using session::CaptureOptions;
using session::PausedVm;
using session::VmCapture;
using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
// Far longer than QEMU is waited for below.
constexpr absl::Duration kSilence = absl::Seconds(15);

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class QemuSilenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-silence-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    session::VmConfig config{.name = "silence",
                             .directory = directory_,
                             .accelerator = TestAccelerator(),
                             .memory_bytes = kGuestMemoryBytes};
    for (const char* name : {"vda", "vdb"}) {
      config.disks.push_back({.name = name, .path = JoinPath(directory_, name), .format = "raw"});
      ASSERT_TRUE(MakeRawDisk(config.disks.back().path, 1 << 20, name[2] == 'a' ? CountingGuest() : "").ok());
    }
    auto vm = session::StartQemuWith({.command_deadline = absl::Seconds(2)}, config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    ASSERT_TRUE(GetsOn()) << "the guest does not boot";
  }
  void TearDown() override {
    vm_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  uint64_t Progress() const { return FileSize(JoinPath(directory_, "console.log")).value_or(0); }
  bool GetsOn() const {
    const uint64_t before = Progress();
    return Eventually([&] { return Progress() > before + 3; });
  }
  void Signal(int signal) const { ASSERT_EQ(::kill(vm_->description().pid, signal), 0); }

  // A whole capture; `at_step` is called before each of its steps.
  absl::Status Capture(absl::Duration max_pause, const std::function<void(int step)>& at_step) {
    const bool memory = vm_->capabilities().background_memory;
    CaptureOptions options{.memory = memory, .max_pause = max_pause};
    OwnedFd sink;
    std::unique_ptr<MemoryReader> reader;
    if (memory) {
      STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
      sink = std::move(pair.first);
      reader = std::make_unique<MemoryReader>(std::move(pair.second));
    }
    at_step(0);
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<VmCapture> capture, vm_->PrepareCapture(options, std::move(sink)));
    at_step(1);
    STILL_ASSIGN_OR_RETURN(PausedVm paused, capture->Pause());
    at_step(2);
    STILL_RETURN_IF_ERROR(capture->PinDisks(paused));
    at_step(3);
    STILL_RETURN_IF_ERROR(capture->SaveStateAndResume(std::move(paused)).status());
    at_step(4);
    if (memory) STILL_RETURN_IF_ERROR(capture->WaitForMemory(absl::Seconds(1)));  // As the control service does.
    at_step(5);
    STILL_RETURN_IF_ERROR(capture->ExportDisks().status());
    at_step(6);
    return capture->Release(true);
  }

  std::string directory_;
  std::unique_ptr<session::Vm> vm_;
};

// Where 7.2's stream is closed before its end, the guest waits for ever for a page that stays protected.
TEST_F(QemuSilenceTest, AStreamThatStandsStillForLongIsKeptOpenAndTheGuestLives) {
  if (!vm_->capabilities().background_memory) GTEST_SKIP() << vm_->capabilities().background_memory_reason;
  std::thread later;
  absl::Status captured = Capture(kPatience, [&](int step) {
    if (step != 4) return;
    Signal(SIGSTOP);
    later = std::thread([this] {
      absl::SleepFor(kSilence);
      Signal(SIGCONT);
    });
  });
  EXPECT_FALSE(captured.ok());
  later.join();
  EXPECT_TRUE(GetsOn());
  auto nothing = [](int) {};
  absl::Status next;
  // The earlier stream may take its time to end.
  EXPECT_TRUE(Eventually([&] { return (next = Capture(kPatience, nothing)).ok(); })) << next;
  EXPECT_TRUE(GetsOn());
}

TEST_F(QemuSilenceTest, StoppedAtAnyStepTheGuestIsHealedByTheKeeperAndTheNextCaptureIsRight) {
  session::VmKeeper keeper(*vm_, nullptr, "");
  keeper.Watch();
  // At the third step more than once: what a late `migrate` and the `cont` behind it make of each other is a race.
  for (int stopped_at : {0, 1, 2, 3, 3, 3, 4, 5, 6}) {
    SCOPED_TRACE(stopped_at);
    absl::Status captured = Capture(absl::Seconds(2), [&](int step) {
      if (step == stopped_at) Signal(SIGSTOP);
    });
    Signal(SIGCONT);
    // The stream may have been through.
    if (stopped_at != 4) {
      EXPECT_FALSE(captured.ok());
    }
    EXPECT_TRUE(GetsOn());
    auto nothing = [](int) {};
    absl::Status next;
    EXPECT_TRUE(Eventually([&] { return (next = Capture(kPatience, nothing)).ok(); })) << next;
    EXPECT_TRUE(GetsOn());
  }
}

TEST_F(QemuSilenceTest, TheWholePauseHasOneLimitAndTheVmRunsOn) {
  absl::Status captured = Capture(absl::Milliseconds(500), [&](int step) {
    if (step == 1) Signal(SIGSTOP);
  });
  EXPECT_EQ(captured.code(), absl::StatusCode::kDeadlineExceeded) << captured;
  EXPECT_THAT(std::string(captured.message()), HasSubstr("--max-pause"));
  Signal(SIGCONT);
  EXPECT_TRUE(GetsOn());
}

}  // namespace
}  // namespace still::testing
