// A VMM that is only known by its pid and its disk files (hypervisor/process), against a real process: what is pinned is
// of one instant, and whatever happens the process runs on.
#include "session/hypervisor/process/process_vm.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/contract/hypervisor/lockstep_writer.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/sanitizers.h"

namespace still::session {
namespace {

using ::still::testing::LockstepWriter;
using ::still::testing::NewestLockstepRecord;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kDiskBytes = 1 << 20;
constexpr absl::Duration kPatience = absl::Seconds(60);
const CaptureOptions kDisksOnly{.memory = false, .max_pause = absl::Seconds(30)};

bool Eventually(const std::function<bool()>& condition) {
  absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

class ProcessVmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-process-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    for (const char* name : {"vda", "vdb"}) MakeDisk(name);
    writer_.emplace(Path("vda"), Path("vdb"));
    ASSERT_TRUE(writer_->GetsOn());
  }
  void TearDown() override {
    writer_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  std::string Path(const std::string& name) const { return JoinPath(directory_, name); }
  void MakeDisk(const std::string& name) const {
    auto file = OpenFile(Path(name), O_RDWR | O_CREAT | O_EXCL);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ(::ftruncate(file->get(), kDiskBytes), 0);
  }
  VmConfig Config() const {
    VmConfig config{.name = "process", .directory = directory_, .adopt_pid = writer_->pid()};
    for (const char* name : {"vda", "vdb"}) config.disks.push_back({.name = name, .path = Path(name), .format = "raw"});
    return config;
  }
  std::unique_ptr<Vm> Adopt(const VmConfig& config) const {
    auto vm = AdoptProcess(config);
    EXPECT_TRUE(vm.ok()) << vm.status();
    return vm.ok() ? *std::move(vm) : nullptr;
  }

  std::string directory_;
  std::optional<LockstepWriter> writer_;
};

TEST_F(ProcessVmTest, ItsDisksAreOfOneInstantAndItRunsOn) {
  std::unique_ptr<Vm> vm = Adopt(Config());
  EXPECT_FALSE(vm->capabilities().memory);
  for (int round = 0; round < 3; ++round) {
    auto capture = vm->PrepareCapture(kDisksOnly, OwnedFd());
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    EXPECT_TRUE(vm->IsPaused().value_or(false));
    uint64_t at_the_point = writer_->written();
    ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
    EXPECT_EQ(writer_->written(), at_the_point) << "it ran in the pause";
    auto report = (*capture)->SaveStateAndResume(*std::move(paused));
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_THAT(report->commands, ElementsAre("SIGSTOP", "pin vda", "pin vdb", "SIGCONT"));
    ASSERT_TRUE(writer_->GetsOn()) << "it does not run on";
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    uint64_t newest[2];
    for (size_t i = 0; i < 2; ++i) {
      auto image = ::still::testing::ReadExport((*exports)[i]);
      ASSERT_TRUE(image.ok()) << image.status();
      EXPECT_EQ(image->size(), kDiskBytes);
      newest[i] = NewestLockstepRecord(*image);
    }
    EXPECT_GE(newest[0], at_the_point);
    EXPECT_LE(newest[1], newest[0]);
    EXPECT_LE(newest[0], newest[1] + 1);
    EXPECT_LE(newest[0], at_the_point + 1);
    EXPECT_TRUE((*capture)->Release(true).ok());
    auto left = ListDirectory(directory_);
    ASSERT_TRUE(left.ok());
    EXPECT_EQ(left->size(), 2u) << "something is left beside the disks";
  }
}

TEST_F(ProcessVmTest, AGuardThatIsDroppedContinuesIt) {
  std::unique_ptr<Vm> vm = Adopt(Config());
  auto capture = vm->PrepareCapture(kDisksOnly, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE((*capture)->Pause().ok());
  EXPECT_TRUE(writer_->GetsOn());
}

// SIGSTOP outlives its sender; the lease does, too.
TEST_F(ProcessVmTest, AHolderThatIsKilledLeavesItRunning) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  pid_t holder = ::fork();
  ASSERT_GE(holder, 0);
  if (holder == 0) {
    auto vm = AdoptProcess(Config());
    if (!vm.ok()) ::_exit(1);
    auto capture = (*vm)->PrepareCapture(kDisksOnly, OwnedFd());
    if (!capture.ok()) ::_exit(2);
    auto paused = (*capture)->Pause();
    char byte = paused.ok() ? 'p' : 'e';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(3);
    for (;;) ::pause();
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'p');
  uint64_t paused_at = writer_->written();
  EXPECT_EQ(writer_->written(), paused_at);
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  EXPECT_TRUE(writer_->GetsOn());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(ProcessVmTest, ALeaseThatEndsContinuesItAndFailsTheCapture) {
  std::unique_ptr<Vm> vm = Adopt(Config());
  auto capture = vm->PrepareCapture({.memory = false, .max_pause = absl::Milliseconds(100)}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  ASSERT_TRUE(writer_->GetsOn()) << "nobody has continued it";
  auto report = (*capture)->SaveStateAndResume(*std::move(paused));
  EXPECT_EQ(report.status().code(), absl::StatusCode::kAborted) << report.status();
  EXPECT_TRUE(writer_->GetsOn());
}

TEST_F(ProcessVmTest, ACopyThatTakesTooLongIsGivenUp) {
  if (Adopt(Config())->capabilities().disk_pin) GTEST_SKIP() << "clones need no time here";
  std::unique_ptr<Vm> vm = Adopt(Config());
  auto capture = vm->PrepareCapture({.memory = false, .max_pause = absl::ZeroDuration()}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  // Both are over before they begin; which one notices depends on the scheduler.
  if (paused.ok()) {
    EXPECT_EQ((*capture)->PinDisks(*paused).code(), absl::StatusCode::kDeadlineExceeded);
  } else {
    EXPECT_EQ(paused.status().code(), absl::StatusCode::kDeadlineExceeded) << paused.status();
  }
}

// A thread in state D stops only when its system call is over.
TEST_F(ProcessVmTest, AThreadThatCannotStopIsWaitedForButNotForEver) {
  if (still::testing::kThreadSanitizer) return;  // Its vfork is a fork, which does not hold the thread in state D.
  std::unique_ptr<Vm> vm = Adopt(Config());
  writer_->EnterUninterruptible();
  CaptureOptions options{.memory = false, .max_pause = absl::Milliseconds(100)};
  auto capture = vm->PrepareCapture(options, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  EXPECT_THAT(paused.status(), ::testing::Property(&absl::Status::message, HasSubstr("is in state D")));
  EXPECT_EQ(paused.status().code(), absl::StatusCode::kDeadlineExceeded);
  capture->reset();
  writer_->LeaveUninterruptible();
  EXPECT_TRUE(writer_->GetsOn()) << "the stop came after all";
  auto again = vm->PrepareCapture(kDisksOnly, OwnedFd());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*again)->Pause().ok());
}

TEST_F(ProcessVmTest, WhatSomebodyElseHasStoppedStaysStopped) {
  std::unique_ptr<Vm> vm = Adopt(Config());
  ASSERT_EQ(::kill(writer_->pid(), SIGSTOP), 0);
  ASSERT_TRUE(Eventually([&] { return vm->IsPaused().value_or(false); }));
  auto capture = vm->PrepareCapture(kDisksOnly, OwnedFd());
  EXPECT_EQ(capture.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(vm->IsPaused().value_or(false));
  ASSERT_TRUE(vm->Resume().ok());
  EXPECT_TRUE(writer_->GetsOn());
}

TEST_F(ProcessVmTest, OnlyADiskThatItHoldsOpenIsItsDisk) {
  MakeDisk("other");
  VmConfig config = Config();
  config.disks[1].path = Path("other");
  auto vm = AdoptProcess(config);
  EXPECT_THAT(std::string(vm.status().message()), AllOf(HasSubstr("other"), HasSubstr("open")));
  config.adopt_pid = 0;
  EXPECT_EQ(AdoptProcess(config).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ProcessVmTest, Qcow2IsServedAsItsContent) {
  auto made = RunCommand({.argv = {"qemu-img", "create", "-q", "-f", "qcow2", Path("disk.qcow2"), "3M"}}, kPatience);
  ASSERT_TRUE(made.ok() && made->exit.ok());
  auto overlay = RunCommand({.argv = {"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                                      Path("disk.qcow2"), Path("overlay.qcow2")}},
                            kPatience);
  ASSERT_TRUE(overlay.ok() && overlay->exit.ok());
  for (const char* name : {"disk.qcow2", "overlay.qcow2"}) {
    SCOPED_TRACE(name);
    VmConfig config = Config();
    auto held = OpenFile(Path(name), O_RDWR);
    ASSERT_TRUE(held.ok());
    config.adopt_pid = ::getpid();
    config.disks.assign(1, {.name = "vda", .path = Path(name), .format = "qcow2"});
    // We hold it open ourselves and are not stopped: nothing is pinned here.
    config.disks[0].read_only = true;
    std::unique_ptr<Vm> vm = Adopt(config);
    auto capture = vm->PrepareCapture(kDisksOnly, OwnedFd());
    if (std::string(name) == "overlay.qcow2") {
      EXPECT_THAT(std::string(capture.status().message()), HasSubstr("backing file"));
      continue;
    }
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    EXPECT_EQ(exports->front().size, uint64_t{3} << 20);
    auto image = ::still::testing::ReadExport(exports->front());
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_TRUE(*image == std::string(3 << 20, '\0'));
  }
}

TEST_F(ProcessVmTest, ItsEndIsSeenAndLettingItGoIsNot) {
  std::unique_ptr<Vm> vm = Adopt(Config());
  vm->Kill();
  vm->WaitForExit();
  EXPECT_FALSE(vm->guest_shut_down());
  EXPECT_TRUE(writer_->GetsOn()) << "it was not ours to end";
  std::unique_ptr<Vm> again = Adopt(Config());
  ::kill(writer_->pid(), SIGKILL);
  again->WaitForExit();
  EXPECT_FALSE(again->guest_shut_down()) << "nobody says why it has ended";
  EXPECT_EQ(again->IsPaused().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(again->PrepareCapture(kDisksOnly, OwnedFd()).ok());
}

}  // namespace
}  // namespace still::session
