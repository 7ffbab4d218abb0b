// The critical window against a scripted hypervisor and a scripted guest: whatever fails, wherever, the VM runs and the
// guest is thawed afterwards, in this order.
#include "session/capture/critical_window.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + now_; }
  absl::Duration Monotonic() const override { return now_; }
  void Sleep(absl::Duration duration) override { now_ += duration; }

 private:
  absl::Duration now_ = absl::Seconds(1000);
};

// What the two fakes share: a diary of everything that was done, and the state of the machine.
struct World {
  ManualClock clock;
  std::vector<std::string> diary;
  bool paused = false;
  bool frozen = false;
  std::string fail_at;         // The call that fails.
  absl::Duration pause_delay;  // Between recheck and pause.
  bool resume_fails_once = false;
  guestpb::QuiesceResponse freeze;
  guestpb::ThawResponse thaw;

  absl::Status Do(const std::string& call) {
    diary.push_back(call);
    if (call == fail_at) return absl::UnavailableError(call + " failed");
    return absl::OkStatus();
  }
};

class ScriptedCapture final : public VmCapture {
 public:
  explicit ScriptedCapture(World& world) : world_(world) {}

  absl::Status FlushDisks() override { return world_.Do("flush"); }
  absl::StatusOr<PausedVm> Pause() override {
    world_.clock.Sleep(world_.pause_delay);
    STILL_RETURN_IF_ERROR(world_.Do("pause"));
    world_.paused = true;
    return PausedVm([this]() -> absl::Status {
      if (std::exchange(world_.resume_fails_once, false)) return absl::UnavailableError("no answer");
      world_.diary.push_back("resume");
      world_.paused = false;
      return absl::OkStatus();
    });
  }
  absl::Status PinDisks(const PausedVm&) override {
    EXPECT_TRUE(world_.paused);
    return world_.Do("pin");
  }
  absl::StatusOr<PauseReport> SaveStateAndResume(PausedVm paused) override {
    EXPECT_TRUE(world_.paused);
    STILL_RETURN_IF_ERROR(world_.Do("save"));
    STILL_RETURN_IF_ERROR(paused.Resume());
    return PauseReport{
        .paused = absl::Milliseconds(20), .commands = {"stop", "pin", "save"}, .memory_method = "background"};
  }
  absl::StatusOr<std::vector<PinnedDiskExport>> ExportDisks() override { return std::vector<PinnedDiskExport>(); }
  absl::Status WaitForMemory(absl::Duration) override { return absl::OkStatus(); }
  uint64_t memory_bytes_written() const override { return 0; }
  absl::Status Release(bool) override { return absl::OkStatus(); }
  void Cancel() override {}

 private:
  World& world_;
};

class ScriptedFreeze final : public FreezeGuard {
 public:
  explicit ScriptedFreeze(World& world) : world_(world) {}
  ~ScriptedFreeze() override {
    if (world_.frozen) (void)Thaw(absl::Seconds(1));
  }
  const guestpb::QuiesceResponse& report() const override { return world_.freeze; }
  absl::Status Recheck(absl::Duration) override { return world_.Do("recheck"); }
  absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration) override {
    EXPECT_FALSE(world_.paused) << "a thaw cannot run in a paused guest";
    STILL_RETURN_IF_ERROR(world_.Do("thaw"));
    world_.frozen = false;
    return world_.thaw;
  }

 private:
  World& world_;
};

class CriticalWindowTest : public ::testing::Test {
 protected:
  void SetUp() override {
    guestpb::FrozenMount& mount = *world_.freeze.add_frozen();
    mount.set_mount_point("/data");
    mount.set_fs_type("ext4");
    world_.thaw.set_cause(guestpb::REQUESTED);
    world_.thaw.set_thawed(1);
  }
  absl::StatusOr<WindowReport> Run(sessionpb::QuiescePolicy quiesce) {
    Freezer freezer = [this](const FreezeOptions&) -> absl::StatusOr<std::unique_ptr<FreezeGuard>> {
      STILL_RETURN_IF_ERROR(world_.Do("freeze"));
      world_.frozen = true;
      return std::make_unique<ScriptedFreeze>(world_);
    };
    WindowObserver observer;
    observer.on_start = [this](const std::string& step, absl::Duration) { steps_.push_back(step); };
    observer.cancelled = [this] { return !steps_.empty() && steps_.back() == cancel_before_; };
    CriticalWindow window(world_.clock, capture_, std::move(freezer), {.quiesce = quiesce}, observer);
    return window.Run();
  }

  World world_;
  ScriptedCapture capture_{world_};
  std::vector<std::string> steps_;
  std::string cancel_before_;
};

TEST_F(CriticalWindowTest, DoesItsStepsInOrderAndReportsThem) {
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(world_.diary, ElementsAre("freeze", "flush", "recheck", "pause", "pin", "save", "resume", "thaw"));
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::FILESYSTEM);
  EXPECT_THAT(report->consistency.downgrades(), IsEmpty());
  EXPECT_EQ(report->windows.pause_us(), 20'000u);
  EXPECT_EQ(report->windows.phases_size(), 7);
}

// Every call fails once, in turn: the machine always ends running and thawed.
TEST_F(CriticalWindowTest, WhateverFailsTheVmRunsAndTheGuestIsThawed) {
  for (const char* call : {"freeze", "flush", "recheck", "pause", "pin", "save"}) {
    SCOPED_TRACE(call);
    world_.diary.clear();
    steps_.clear();
    world_.fail_at = call;
    absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
    EXPECT_THAT(report.status().message(), HasSubstr(std::string(call) + " failed"));
    EXPECT_FALSE(world_.paused);
    EXPECT_FALSE(world_.frozen);
  }
}

TEST_F(CriticalWindowTest, ACancelBeforeAnyStepLeavesTheVmRunningAndThawed) {
  for (const char* step : {"quiesce", "flush", "recheck", "pause", "pin_disks", "save_state", "thaw"}) {
    SCOPED_TRACE(step);
    world_.diary.clear();
    steps_.clear();
    cancel_before_ = step;
    EXPECT_TRUE(absl::IsCancelled(Run(sessionpb::QUIESCE_REQUIRE).status()));
    EXPECT_FALSE(world_.paused);
    EXPECT_FALSE(world_.frozen);
  }
}

TEST_F(CriticalWindowTest, ATriedFreezeThatFailsLowersTheLabel) {
  world_.fail_at = "freeze";
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_TRY);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::CRASH);
  EXPECT_THAT(report->consistency.downgrades(0), HasSubstr("freeze failed"));
  EXPECT_THAT(world_.diary, ElementsAre("freeze", "flush", "pause", "pin", "save", "resume"));
}

TEST_F(CriticalWindowTest, AThawByTheLeaseAfterThePointIsNoDowngrade) {
  world_.thaw.set_cause(guestpb::LEASE_EXPIRED);
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::FILESYSTEM);
}

TEST_F(CriticalWindowTest, AThawByTheLeaseThatMayHaveBeenBeforeThePointIsOne) {
  world_.thaw.set_cause(guestpb::LEASE_EXPIRED);
  world_.pause_delay = absl::Seconds(3);
  absl::StatusOr<WindowReport> tried = Run(sessionpb::QUIESCE_TRY);
  ASSERT_TRUE(tried.ok());
  EXPECT_EQ(tried->consistency.level(), manifestpb::Consistency::CRASH);
  EXPECT_EQ(tried->consistency.thaw_cause(), "lease expired");
  EXPECT_TRUE(absl::IsFailedPrecondition(Run(sessionpb::QUIESCE_REQUIRE).status()));
}

TEST_F(CriticalWindowTest, AMountThatSomebodyThawedEarlyLowersTheLabel) {
  world_.thaw.add_thawed_early("/data");
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_TRY);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::CRASH);
  EXPECT_THAT(report->consistency.downgrades(0), HasSubstr("/data"));
}

TEST_F(CriticalWindowTest, NothingFreezableIsSaidAndClaimsNothing) {
  world_.freeze.clear_frozen();
  world_.thaw.set_thawed(0);
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_TRY);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::CRASH);
  EXPECT_THAT(report->consistency.downgrades(), Contains(HasSubstr("no freezable file system")));
}

TEST_F(CriticalWindowTest, HooksThatAllPassGiveTheApplicationLevel) {
  world_.freeze.add_hooks()->set_path("/etc/still/hooks.d/db");
  EXPECT_EQ(Run(sessionpb::QUIESCE_REQUIRE)->consistency.level(), manifestpb::Consistency::APPLICATION);
  world_.freeze.mutable_hooks(0)->set_exit_code(1);
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::FILESYSTEM);
  EXPECT_THAT(report->consistency.downgrades(0), HasSubstr("/etc/still/hooks.d/db"));
}

TEST_F(CriticalWindowTest, AResumeThatFailsOnceIsTriedAgainByTheGuard) {
  world_.resume_fails_once = true;
  EXPECT_FALSE(Run(sessionpb::QUIESCE_REQUIRE).ok());
  EXPECT_FALSE(world_.paused);
  EXPECT_FALSE(world_.frozen);
}

}  // namespace
}  // namespace still::session
