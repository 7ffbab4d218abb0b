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
  bool restarted = false;
  bool agent_says_aborted = false;                // To the thaw, without a reset.
  std::string fail_at;                            // The call that fails.
  std::string reset_at;                           // The call during which the guest is reset.
  absl::Duration pause_delay;                     // Between recheck and pause.
  absl::Duration guest_time = absl::Seconds(77);  // The guest's clock at the recheck.
  bool resume_fails_once = false;
  guestpb::QuiesceResponse freeze;
  guestpb::ThawResponse thaw;

  absl::Status Do(const std::string& call) {
    diary.push_back(call);
    if (call == reset_at) {
      restarted = true;
      frozen = false;
    }
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
  bool GuestRestarted() const override { return world_.restarted; }
  absl::StatusOr<absl::Duration> Recheck(absl::Duration) override {
    STILL_RETURN_IF_ERROR(world_.Do("recheck"));
    if (world_.restarted) return absl::FailedPreconditionError("the guest was reset");
    return world_.guest_time;
  }
  absl::StatusOr<guestpb::ThawResponse> Thaw(absl::Duration) override {
    EXPECT_FALSE(world_.paused) << "a thaw cannot run in a paused guest";
    if (world_.restarted) return absl::AbortedError("the guest was reset");
    if (world_.agent_says_aborted) return absl::AbortedError("thaw: given up");
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
    world_.thaw.set_by_token(true);
    manifestpb::Disk& disk = *disks_.Add();
    disk.set_name("vda");
    disk.set_pci_address("0000:00:08.0");
    guestpb::Disk& seen = *world_.freeze.add_disks();
    seen.set_name("vdx");  // What a guest calls its disks says nothing.
    seen.set_pci_address("0000:00:08.0");
    AddUse("vdx1", guestpb::DiskUse::FILE_SYSTEM, guestpb::DiskUse::FROZEN);
  }
  guestpb::DiskUse& AddUse(const std::string& device, guestpb::DiskUse::Kind kind, guestpb::DiskUse::State state) {
    guestpb::DiskUse& use = *world_.freeze.mutable_disks(0)->add_uses();
    use.set_device(device);
    use.set_kind(kind);
    use.set_state(state);
    return use;
  }
  // Somebody but the capture thawed the guest, so long after the recheck.
  void ThawedBySomebodyElse(absl::Duration after_recheck) {
    world_.thaw.set_by_token(false);
    world_.thaw.set_requester("still thaw");
    world_.thaw.set_thaw_began_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(world_.guest_time + after_recheck)));
  }
  // The label, and why it is not more.
  std::pair<manifestpb::Consistency::Level, std::string> Label() {
    absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_TRY);
    EXPECT_TRUE(report.ok()) << report.status();
    const auto& reasons = report->consistency.downgrades();
    return {report->consistency.level(), reasons.empty() ? "" : reasons.Get(0)};
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
    CriticalWindow window(world_.clock, capture_, std::move(freezer), {.quiesce = quiesce, .disks = disks_}, observer);
    return window.Run();
  }

  World world_;
  google::protobuf::RepeatedPtrField<manifestpb::Disk> disks_;
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

TEST_F(CriticalWindowTest, AResetBeforeThePointLowersTheLabelAndFailsWhatIsRequired) {
  for (const char* call : {"recheck", "pause"}) {
    SCOPED_TRACE(call);
    world_.reset_at = call;
    world_.restarted = false;
    absl::StatusOr<WindowReport> tried = Run(sessionpb::QUIESCE_TRY);
    ASSERT_TRUE(tried.ok()) << tried.status();
    EXPECT_EQ(tried->consistency.level(), manifestpb::Consistency::CRASH);
    EXPECT_THAT(tried->consistency.downgrades(), ElementsAre(HasSubstr("the guest was reset")));
    EXPECT_FALSE(world_.paused);
    world_.restarted = false;
    EXPECT_THAT(Run(sessionpb::QUIESCE_REQUIRE).status().message(), HasSubstr("the guest was reset"));
    EXPECT_FALSE(world_.paused);
  }
}

TEST_F(CriticalWindowTest, AResetAfterThePointTakesNothingFromIt) {
  world_.freeze.mutable_disks(0)->mutable_uses(0)->set_device("vdx");  // The whole disk.
  for (const char* call : {"save", "thaw"}) {
    SCOPED_TRACE(call);
    world_.reset_at = call;
    world_.restarted = false;
    absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->consistency.level(), manifestpb::Consistency::FILESYSTEM);
    EXPECT_EQ(report->consistency.thaw_cause(), call == std::string("save") ? "guest reset" : "requested");
  }
}

TEST_F(CriticalWindowTest, AResetAfterThePointLeavesUnprovenWhatTheThawWouldHaveTold) {
  using Level = manifestpb::Consistency;
  world_.reset_at = "save";
  // Beside a frozen partition there may be an unused one, which was written to before the pause for all that is known.
  EXPECT_THAT(Label(), ::testing::Pair(Level::CRASH, HasSubstr("disk vda: the guest was reset before it told")));
  world_.freeze.mutable_disks(0)->mutable_uses(0)->set_device("vdx");
  for (auto state : {guestpb::DiskUse::CLEAN, guestpb::DiskUse::READ_ONLY}) {
    world_.restarted = false;
    world_.freeze.mutable_disks(0)->mutable_uses()->DeleteSubrange(1, world_.freeze.disks(0).uses_size() - 1);
    AddUse("vdx", guestpb::DiskUse::FILE_SYSTEM, state);
    EXPECT_THAT(Label(), ::testing::Pair(Level::CRASH, HasSubstr("disk vda: the guest was reset before it told")));
  }
  world_.restarted = false;
  world_.freeze.mutable_disks(0)->clear_uses();  // Unused.
  EXPECT_EQ(Label().first, Level::CRASH);
  world_.restarted = false;
  world_.freeze.mutable_disks(0)->set_read_only(true);
  EXPECT_EQ(Label().first, Level::FILESYSTEM);
}

TEST_F(CriticalWindowTest, AGuestThatOnlySaysAbortedWasNotReset) {
  world_.agent_says_aborted = true;
  EXPECT_TRUE(absl::IsAborted(Run(sessionpb::QUIESCE_TRY).status()));
}

TEST_F(CriticalWindowTest, FrozenFileSystemsWithoutANameAreCountedAndNotKept) {
  world_.freeze.add_frozen();
  EXPECT_THAT(Label().second, HasSubstr("only 1 of 2 file systems were still frozen at the thaw"));
  world_.thaw.set_thawed(2);
  EXPECT_EQ(Run(sessionpb::QUIESCE_REQUIRE)->consistency.frozen_size(), 1);
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

using manifestpb::Consistency;
using ::testing::Pair;

TEST_F(CriticalWindowTest, EachDiskIsProvenByWhatUsesIt) {
  AddUse("vdx2", guestpb::DiskUse::FILE_SYSTEM, guestpb::DiskUse::CLEAN);
  AddUse("vdx3", guestpb::DiskUse::SWAP, guestpb::DiskUse::VOLATILE);
  AddUse("vdx4", guestpb::DiskUse::FILE_SYSTEM, guestpb::DiskUse::READ_ONLY);
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->consistency.disks_size(), 1);
  EXPECT_TRUE(report->consistency.disks(0).covered());
  EXPECT_EQ(report->consistency.disks(0).name(), "vda");
  EXPECT_EQ(report->consistency.disks(0).uses(3).state(), "read only");
}

TEST_F(CriticalWindowTest, AWriterThatIsNotCoveredLowersTheLabelAndRequireFailsBeforeThePause) {
  guestpb::DiskUse& use = AddUse("vdx2", guestpb::DiskUse::OPENED, guestpb::DiskUse::NOT_COVERED);
  use.set_name("dd (412)");
  use.set_detail("has it open for writing");
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, "disk vda: dd (412) has it open for writing: vdx2"));
  world_.diary.clear();
  EXPECT_THAT(Run(sessionpb::QUIESCE_REQUIRE).status().message(), HasSubstr("dd (412)"));
  EXPECT_THAT(world_.diary, ElementsAre("freeze", "thaw"));
}

TEST_F(CriticalWindowTest, WhatANewerAgentCallsAStateIsNotCovered) {
  AddUse("vdx2", guestpb::DiskUse::FILE_SYSTEM, static_cast<guestpb::DiskUse::State>(99));
  EXPECT_EQ(Label().first, Consistency::CRASH);
}

TEST_F(CriticalWindowTest, ADiskThatTheAgentDoesNotShowIsNotCovered) {
  world_.freeze.mutable_disks(0)->set_pci_address("0000:00:09.0");
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, HasSubstr("does not show this disk")));
  world_.freeze.mutable_disks(0)->set_pci_address("0000:00:08.0");
  world_.freeze.clear_disks();
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, HasSubstr("too old")));
  world_.freeze.set_disks_unknown("no sysfs");
  EXPECT_EQ(Label().first, Consistency::CRASH);
}

TEST_F(CriticalWindowTest, ADiskWithoutAPlaceIsKnownByItsSerialNumberAndWithNeitherMayBeAny) {
  guestpb::Disk& other = *world_.freeze.add_disks();
  other.set_name("vdy");
  guestpb::DiskUse& use = *other.add_uses();
  use.set_device("vdy");
  use.set_state(guestpb::DiskUse::NOT_COVERED);
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
  disks_.Mutable(0)->clear_pci_address();
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, HasSubstr("vdy")));
  disks_.Mutable(0)->set_serial("s1");
  world_.freeze.mutable_disks(0)->set_serial("s1");
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
  disks_.Mutable(0)->clear_serial();
  use.set_state(guestpb::DiskUse::FROZEN);
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
  world_.thaw.add_written("vdy");
  EXPECT_EQ(Label().first, Consistency::CRASH);
}

TEST_F(CriticalWindowTest, AReadOnlyDiskNeedsNoProof) {
  disks_.Mutable(0)->set_read_only(true);
  world_.freeze.clear_disks();
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
}

TEST_F(CriticalWindowTest, AMountOnNoDiskOfTheCaptureCostsNoLabel) {
  guestpb::SkippedMount& skipped = *world_.freeze.add_skipped();
  skipped.set_mount_point("/elsewhere");
  skipped.set_reason(guestpb::SkippedMount::UNREACHABLE);
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
  disks_.Clear();  // Where nothing is known of disks, it does.
  EXPECT_EQ(Label().first, Consistency::CRASH);
}

TEST_F(CriticalWindowTest, AWriteToWhatWasCleanLowersTheLabel) {
  world_.thaw.add_written("vdx");
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, HasSubstr("was written to between")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Run(sessionpb::QUIESCE_REQUIRE).status()));
}

TEST_F(CriticalWindowTest, AnOperatorsThawAfterThePauseIsNoDowngradeAndOneThatMayHaveBeenBeforeIs) {
  world_.pause_delay = absl::Milliseconds(300);
  ThawedBySomebodyElse(absl::Milliseconds(310));
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);
  ThawedBySomebodyElse(absl::Milliseconds(290));
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, "the guest was thawed by still thaw, perhaps before the point"));
  EXPECT_EQ(Run(sessionpb::QUIESCE_TRY)->consistency.thawed_by(), "still thaw");
  // An agent that does not tell the time at the recheck proves nothing.
  ThawedBySomebodyElse(absl::Milliseconds(310));
  world_.guest_time = absl::ZeroDuration();
  EXPECT_EQ(Label().first, Consistency::CRASH);
}

TEST_F(CriticalWindowTest, WhatTheLeaseThawedIsCountedToo) {
  world_.thaw.set_by_token(false);
  world_.thaw.set_cause(guestpb::LEASE_EXPIRED);
  EXPECT_EQ(Label().first, Consistency::FILESYSTEM);  // After the point: the margin of the lease says so.
  world_.thaw.add_thawed_early("/data");
  EXPECT_THAT(Label(), Pair(Consistency::CRASH, HasSubstr("/data was thawed early by somebody else")));
}

TEST_F(CriticalWindowTest, ThawHooksThatRunOnAreKeptAsUnfinished) {
  world_.freeze.add_hooks()->set_path("/etc/still/hooks.d/a");
  world_.freeze.add_hooks()->set_path("/etc/still/hooks.d/b");
  world_.thaw.set_hooks_pending(2);
  absl::StatusOr<WindowReport> report = Run(sessionpb::QUIESCE_REQUIRE);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->pending_thaw_hooks, 2u);
  ASSERT_EQ(report->consistency.hooks_size(), 4);
  EXPECT_EQ(report->consistency.hooks(2).path(), "/etc/still/hooks.d/b");
  EXPECT_TRUE(report->consistency.hooks(2).unfinished());
}

TEST_F(CriticalWindowTest, AResumeThatFailsOnceIsTriedAgainByTheGuard) {
  world_.resume_fails_once = true;
  EXPECT_FALSE(Run(sessionpb::QUIESCE_REQUIRE).ok());
  EXPECT_FALSE(world_.paused);
  EXPECT_FALSE(world_.frozen);
}

}  // namespace
}  // namespace still::session
