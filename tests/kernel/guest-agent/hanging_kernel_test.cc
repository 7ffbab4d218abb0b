// What hangs in the kernel delays nobody, and nothing of it counts as frozen; what cannot freeze is told.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/kernel/guest-agent/freeze_kernel_fixture.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A FUSE file system whose server never answers: whoever touches it waits until the end of this object.
class DeadFuse {
 public:
  DeadFuse(const std::string& type, const std::string& source, const std::string& name)
      : device_(::open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
    sandbox->MakeDirectory(name);
    const std::string options = absl::StrCat("fd=", device_.get(), ",rootmode=40000,user_id=0,group_id=0",
                                             type == "fuseblk" ? ",blksize=512" : "");
    STILL_CHECK(device_.valid());
    STILL_CHECK(::mount(source.c_str(), At(name).c_str(), type.c_str(), 0, options.c_str()) == 0);
    path_ = At(name);
  }
  ~DeadFuse() {
    device_.Reset();
    STILL_CHECK(Eventually([this] { return ::umount2(path_.c_str(), 0) == 0; }));
  }

 private:
  OwnedFd device_;
  std::string path_;
};

const pb::SkippedMount* FindSkipped(const pb::QuiesceResponse& response, const std::string& mount_point) {
  for (const pb::SkippedMount& skipped : response.skipped()) {
    if (skipped.mount_point() == mount_point) return &skipped;
  }
  return nullptr;
}

class HangingKernelTest : public FreezeKernelTest {};

TEST_F(HangingKernelTest, ADeadMountDelaysNobody) {
  sandbox->MountNew("ext4", "a.img", "a");
  DeadFuse dead("fuse", "dead", "dead");
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("a")));
  ASSERT_NE(FindSkipped(*frozen, At("dead")), nullptr);
  EXPECT_EQ(FindSkipped(*frozen, At("dead"))->reason(), pb::SkippedMount::NO_BLOCK_DEVICE);
  EXPECT_EQ(Thaw("t").thawed(), 1u);
}

// ntfs-3g and exfat-fuse are such; while it does not answer, nobody can know what it writes.
TEST_F(HangingKernelTest, AFileSystemOnADiskThatDoesNotAnswerIsSkippedAndItsDiskNotCovered) {
  sandbox->MountNew("ext4", "a.img", "a");
  LoopDevice device("ntfs.img");
  DeadFuse dead("fuseblk", device.path(), "ntfs");
  for (const char* token : {"t", "u"}) {
    auto frozen = Quiesce(token);
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    EXPECT_THAT(Frozen(*frozen), ElementsAre(At("a")));
    EXPECT_NE(FindSkipped(*frozen, At("ntfs")), nullptr);
    const pb::Disk* disk = FindDisk(*frozen, device.path());
    ASSERT_NE(disk, nullptr);
    ASSERT_GE(disk->uses_size(), 1) << disk->DebugString();
    for (const pb::DiskUse& use : disk->uses()) EXPECT_EQ(use.state(), pb::DiskUse::NOT_COVERED) << use.DebugString();
    EXPECT_EQ(Thaw(token).thawed(), 1u);
  }
}

// As over a network file system that is away.
TEST_F(HangingKernelTest, ALoopDeviceOverAMountThatIsStoppedDelaysNobody) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "served.img", "b");
  sandbox->Unmount({At("b")});
  sandbox->MakeDirectory("fuse");
  auto server = ChildProcess::Start({.argv = {"nbdfuse", At("fuse/disk"), "--command", "nbdkit", "-s",
                                              "--exit-with-parent", "file", At("served.img")},
                                     .end_with_parent = true});
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_TRUE(Eventually([] { return PathExists(At("fuse/disk")); }));
  sandbox->Mount({"-o", "loop", At("fuse/disk"), At("b")});
  ASSERT_TRUE(WriteFileAtomically(At("b/file"), std::string(1 << 20, 'x')).ok());
  ASSERT_TRUE(server->Kill(SIGSTOP).ok());
  auto frozen = Quiesce("t");
  auto again = frozen.ok() ? absl::StatusOr<pb::ThawResponse>(Thaw("t")) : frozen.status();
  ASSERT_TRUE(server->Kill(SIGCONT).ok());
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("a")));
  ASSERT_NE(FindSkipped(*frozen, At("b")), nullptr);
  EXPECT_THAT(FindSkipped(*frozen, At("b"))->detail(), HasSubstr(At("fuse")));
  EXPECT_EQ(again->thawed(), 1u);
  sandbox->Unmount({At("b")});
  sandbox->Unmount({At("fuse")});
}

// Freezes the file system `a` only, with one hook.
class HookedAgent {
 public:
  // `condition`, of the hook's verb: writes to a file system that is frozen, where no signal reaches it.
  HookedAgent(const std::string& directory, Agent& agent, const std::string& condition)
      : hooks_({.own = JoinPath(directory, "hooks"), .qemu = {}}),
        controller_({.freezer = agent.freezer,
                     .hooks = hooks_,
                     .disks = agent.disks,
                     .marker = FreezeMarker(JoinPath(directory, "with-hooks")),
                     .timer = *timer_,
                     .clock = Clock::Real()}) {
    const std::string hook = JoinPath(directory, "hooks/10-stuck");
    STILL_CHECK(MakeDirectories(JoinPath(directory, "hooks"), 0755).ok());
    const std::string script = absl::StrCat("#!/bin/sh\n[ ", condition, " ] || echo x > ", At("stuck"), "/file\n");
    STILL_CHECK(WriteFileAtomically(hook, script, 0755).ok());
  }
  absl::StatusOr<pb::QuiesceResponse> Quiesce(const std::string& token, pb::HookPolicy policy) {
    pb::QuiesceRequest request;
    request.set_token(token);
    request.set_lease_ms(20000);
    request.add_mounts(At("a"));
    request.set_hook_policy(policy);
    request.set_hook_timeout_ms(500);
    return controller_.Quiesce(request, "test");
  }
  absl::StatusOr<pb::ThawResponse> Thaw(const std::string& token) {
    pb::ThawRequest request;
    request.set_token(token);
    return controller_.Thaw(request);
  }
  // Once it has ended the hook runs again.
  bool WorksInTheEnd() {
    int attempt = 0;
    return Eventually([&] {
      const std::string token = absl::StrCat("later", ++attempt);
      const bool frozen = Quiesce(token, pb::HOOK_FAIL).ok();
      return frozen && Thaw(token).ok();
    });
  }
  FreezeController& controller() { return controller_; }

 private:
  std::unique_ptr<LeaseTimer> timer_ = *MakeKernelLeaseTimer();
  HookPrograms hooks_;
  FreezeController controller_;
};

TEST_F(HangingKernelTest, AHookThatHangsInTheKernelFailsItsFreezeAndWedgesNothing) {
  sandbox->MountNew("ext4", "stuck.img", "stuck");
  sandbox->MountNew("ext4", "a.img", "a");
  HookedAgent agent(directory_.path(), *agent_, "$1 = thaw");
  ASSERT_EQ(FreezeBehindItsBack(At("stuck")), 0);
  auto hung = agent.Quiesce("t", pb::HOOK_FAIL);
  EXPECT_EQ(hung.status().code(), absl::StatusCode::kFailedPrecondition) << hung.status();
  EXPECT_THAT(std::string(hung.status().message()), HasSubstr("hangs in the kernel"));
  EXPECT_FALSE(IsFrozen(At("a")));
  // It is not started a second time beside itself; whoever can do without it gets a freeze.
  auto warned = agent.Quiesce("u", pb::HOOK_WARN);
  ASSERT_TRUE(warned.ok()) << warned.status();
  EXPECT_THAT(warned->hooks(0).output(), HasSubstr("still hangs"));
  EXPECT_TRUE(IsFrozen(At("a")));
  auto thawed = agent.Thaw("u");
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_FALSE(IsFrozen(At("a")));
  ASSERT_EQ(ThawBehindItsBack(At("stuck")), 0);
  EXPECT_TRUE(agent.WorksInTheEnd());
}

TEST_F(HangingKernelTest, AThawHookThatHangsInTheKernelIsToldAndWedgesNothing) {
  sandbox->MountNew("ext4", "stuck.img", "stuck");
  sandbox->MountNew("ext4", "a.img", "a");
  HookedAgent agent(directory_.path(), *agent_, "$1 = freeze");
  ASSERT_EQ(FreezeBehindItsBack(At("stuck")), 0);
  auto frozen = agent.Quiesce("t", pb::HOOK_FAIL);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  auto thawed = agent.Thaw("t");
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_EQ(thawed->hooks_pending(), 1u);
  EXPECT_FALSE(IsFrozen(At("a"))) << "the answer does not wait for the hook, and nor does the thaw";
  EXPECT_TRUE(Eventually([&] { return agent.controller().Status().thaw_hooks_pending() == 0; }));
  pb::QuiesceStatusResponse status = agent.controller().Status();
  ASSERT_EQ(status.thaw_hooks_size(), 1);
  EXPECT_THAT(status.thaw_hooks(0).output(), HasSubstr("hangs in the kernel"));
  auto warned = agent.Quiesce("u", pb::HOOK_WARN);
  ASSERT_TRUE(warned.ok()) << warned.status();
  EXPECT_TRUE(IsFrozen(At("a")));
  thawed = agent.Thaw("u");
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_FALSE(IsFrozen(At("a")));
  ASSERT_EQ(ThawBehindItsBack(At("stuck")), 0);
  EXPECT_TRUE(agent.WorksInTheEnd());
}

TEST_F(HangingKernelTest, SwapIsToldOfItsDisk) {
  LoopDevice device("swap.img");
  RunTool({"mkswap", device.path()});
  ASSERT_EQ(::swapon(device.path().c_str(), 0), 0);
  auto frozen = Quiesce("t");
  ASSERT_EQ(::swapoff(device.path().c_str()), 0);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const pb::Disk* disk = FindDisk(*frozen, device.path());
  ASSERT_NE(disk, nullptr);
  ASSERT_EQ(disk->uses_size(), 1) << disk->DebugString();
  EXPECT_EQ(disk->uses(0).kind(), pb::DiskUse::SWAP);
  EXPECT_EQ(disk->uses(0).state(), pb::DiskUse::VOLATILE);
  EXPECT_EQ(disk->uses(0).name(), device.path());
  Thaw("t");
}

}  // namespace
}  // namespace still::agent
