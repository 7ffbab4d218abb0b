// The controller over the kernel's own FIFREEZE and FITHAW.
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest-agent/freeze_controller.h"
#include "tests/kernel/guest-agent/freeze_kernel_fixture.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

TEST_F(FreezeKernelTest, AMixedTableIsFrozenOncePerFileSystemAndThawed) {
  sandbox->MountNew("ext4", "ext4.img", "ext4");
  sandbox->MountNew("xfs", "xfs.img", "xfs");
  sandbox->MountNew("ext4", "ro.img", "ro", "loop,ro");
  sandbox->MakeDirectory("bind");
  sandbox->Mount({"--bind", At("ext4"), At("bind")});
  for (const char* name : {"ext4/upper", "ext4/work", "lower", "overlay", "tmpfs"}) sandbox->MakeDirectory(name);
  sandbox->Mount({"-t", "overlay", "overlay", "-o",
                  absl::StrCat("lowerdir=", At("lower"), ",upperdir=", At("ext4/upper"), ",workdir=", At("ext4/work")),
                  At("overlay")});
  sandbox->Mount({"-t", "tmpfs", "-o", "size=64k", "tmpfs", At("tmpfs")});

  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("xfs"), At("ext4")));
  EXPECT_EQ(Skipped(*frozen),
            (std::map<std::string, pb::SkippedMount::Reason>{{At("ro"), pb::SkippedMount::READ_ONLY},
                                                             {At("bind"), pb::SkippedMount::DUPLICATE},
                                                             {At("overlay"), pb::SkippedMount::NO_BLOCK_DEVICE},
                                                             {At("tmpfs"), pb::SkippedMount::NO_BLOCK_DEVICE}}));
  EXPECT_TRUE(IsFrozen(At("ext4")));
  EXPECT_TRUE(IsFrozen(At("xfs")));
  // Also those who come through the bind mount and the overlay; not those on the tmpfs.
  Writer on_tmpfs(At("tmpfs"));
  EXPECT_TRUE(Eventually([&] { return on_tmpfs.HasEnded(); }));
  ExpectWritersWaitFor({"ext4", "xfs", "bind", "overlay"}, [&] {
    pb::ThawResponse thawed = Thaw("t");
    EXPECT_EQ(thawed.thawed(), 2u);
    EXPECT_EQ(thawed.thawed_early_size(), 0);
    EXPECT_EQ(thawed.written_size(), 0) << "a frozen file system writes nothing of its own";
  });
  EXPECT_FALSE(IsFrozen(At("ext4")));
  EXPECT_FALSE(IsFrozen(At("xfs")));
}

TEST_F(FreezeKernelTest, BtrfsSubvolumesAreOneFileSystem) {
  sandbox->MountNew("btrfs", "btrfs.img", "btrfs");
  auto made = RunCommand({.argv = {"btrfs", "subvolume", "create", At("btrfs/sub")}}, absl::Seconds(60));
  ASSERT_TRUE(made.ok() && made->exit.ok()) << made->stderr_text;
  sandbox->MakeDirectory("sub");
  std::string device;
  auto survey = agent_->freezer.Survey();
  ASSERT_TRUE(survey.ok());
  for (const MountEntry& mount : survey->mounts) device = mount.source;
  sandbox->Mount({"-o", "subvol=sub", device, At("sub")});
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("btrfs")));
  EXPECT_EQ(frozen->frozen(0).device(), device);
  EXPECT_EQ(Skipped(*frozen).at(At("sub")), pb::SkippedMount::DUPLICATE);
  ExpectWritersWaitFor({"btrfs", "sub"}, [&] {
    pb::ThawResponse thawed = Thaw("t");
    EXPECT_EQ(thawed.thawed(), 1u);
    EXPECT_EQ(thawed.written_size(), 0);
  });
}

TEST_F(FreezeKernelTest, AnImageTakenWhileFrozenIsCleanAndOneTakenUnderLoadIsNot) {
  sandbox->MountNew("ext4", "ext4.img", "ext4");
  auto needs_recovery = [] {
    auto output = RunCommand({.argv = {"dumpe2fs", "-h", At("ext4.img")}}, absl::Seconds(60));
    EXPECT_TRUE(output.ok() && output->exit.ok()) << output->stderr_text;
    return absl::StrContains(output->stdout_text, "needs_recovery");
  };
  Writer writer(At("ext4"));
  EXPECT_TRUE(Eventually([&] { return writer.HasEnded(); }));
  EXPECT_TRUE(needs_recovery());
  ASSERT_TRUE(Quiesce("t").ok());
  EXPECT_FALSE(needs_recovery());
  Thaw("t");
}

TEST_F(FreezeKernelTest, SomebodyElsesFreezeIsNeitherCountedNorThawed) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  ASSERT_EQ(FreezeBehindItsBack(At("a")), 0);
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("b")));
  EXPECT_EQ(Skipped(*frozen).at(At("a")), pb::SkippedMount::ALREADY_FROZEN);
  EXPECT_EQ(Thaw("t").thawed(), 1u);
  EXPECT_TRUE(IsFrozen(At("a")));
  EXPECT_FALSE(IsFrozen(At("b")));
  // Unless the operator says so.
  pb::ThawRequest everything;
  everything.set_foreign_too(true);
  ASSERT_TRUE(agent_->controller.Thaw(everything).ok());
  EXPECT_FALSE(IsFrozen(At("a")));
}

TEST_F(FreezeKernelTest, SomebodyElsesThawIsReported) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  ASSERT_TRUE(Quiesce("t").ok());
  ASSERT_EQ(ThawBehindItsBack(At("a")), 0);
  pb::ThawResponse thawed = Thaw("t");
  EXPECT_EQ(thawed.thawed(), 1u);
  EXPECT_THAT(thawed.thawed_early(), ElementsAre(At("a")));
}

TEST_F(FreezeKernelTest, TheLeaseThawsByItself) {
  sandbox->MountNew("ext4", "a.img", "a");
  ASSERT_TRUE(Quiesce("t", 3000).ok());
  ExpectWritersWaitFor({"a"}, [] {});
  EXPECT_EQ(Thaw("t").cause(), pb::LEASE_EXPIRED);
}

TEST_F(FreezeKernelTest, AnImageOnAnotherFileSystemIsFrozenFirstWhateverTheMountOrder) {
  sandbox->MountNew("xfs", "outer.img", "outer");
  sandbox->MountNew("ext4", "outer/inner.img", "inner");
  // The outer one stays reachable only through a newer mount than the inner one: newest first would freeze it first,
  // and the inner freeze would wait for its writes until the lease runs out.
  sandbox->MakeDirectory("later");
  sandbox->Mount({"--bind", At("outer"), At("later")});
  sandbox->Unmount({"--lazy", At("outer")});
  for (int i = 0; i < 20; ++i)
    ASSERT_TRUE(WriteFileAtomically(At(absl::StrCat("inner/", i)), std::string(100000, 'x')).ok());
  auto frozen = Quiesce("t", 5000);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("inner"), At("later")));
  EXPECT_EQ(Thaw("t").thawed(), 2u);
}

TEST_F(FreezeKernelTest, ACoveredMountIsReachedThroughAnotherOrSaidToBeUnreachable) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  sandbox->MakeDirectory("elsewhere");
  sandbox->Mount({"--bind", At("b"), At("elsewhere")});
  for (const char* name : {"a", "b"}) sandbox->Mount({"-t", "tmpfs", "-o", "size=64k", "tmpfs", At(name)});
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(Frozen(*frozen), ElementsAre(At("elsewhere")));
  int unreachable = 0;
  for (const auto& skipped : frozen->skipped()) unreachable += skipped.reason() == pb::SkippedMount::UNREACHABLE;
  EXPECT_EQ(unreachable, 2);
  EXPECT_EQ(Thaw("t").thawed(), 1u);
}

TEST_F(FreezeKernelTest, WhatIsLazilyUnmountedWhileFrozenIsThawedAllTheSame) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  ASSERT_TRUE(Quiesce("t").ok());
  OwnedFd inside(::open(At("a").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  sandbox->Unmount({"--lazy", At("a")});
  EXPECT_EQ(Thaw("t").thawed(), 2u);
  EXPECT_FALSE(IsFrozen(absl::StrCat("/proc/self/fd/", inside.get())));
}

TEST_F(FreezeKernelTest, OnlyTheMountsAskedForAreFrozen) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  auto frozen = Quiesce("t", 20000, {At("b")});
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_FALSE(IsFrozen(At("a")));
  EXPECT_TRUE(IsFrozen(At("b")));
  EXPECT_EQ(Quiesce("u", 20000, {At("nowhere")}).status().code(), absl::StatusCode::kFailedPrecondition);
  Thaw("t");
  EXPECT_EQ(Quiesce("v", 20000, {At("nowhere")}).status().code(), absl::StatusCode::kInvalidArgument);
}

// A process in a mount namespace of its own, with a file system that nobody else has mounted. It thaws it when the test
// is gone, for the sandbox's watchdog does not see it.
class OtherNamespace {
 public:
  OtherNamespace(const std::string& image, const std::string& mount_point) {
    int ready[2], life[2];
    STILL_CHECK(::pipe2(ready, O_CLOEXEC) == 0 && ::pipe2(life, O_CLOEXEC) == 0);
    pid_ = ::fork();
    STILL_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ::close(life[1]);
      bool mounted = ::unshare(CLONE_NEWNS) == 0;
      if (mounted) sandbox->Mount({"-o", "loop", image, mount_point});
      if (::write(ready[1], "+", 1) != 1) ::_exit(1);
      char none;
      (void)!::read(life[0], &none, 1);
      while (ThawBehindItsBack(mount_point) == 0) {
      }
      ::_exit(mounted ? 0 : 1);
    }
    ::close(ready[1]);
    ::close(life[0]);
    char byte;
    STILL_CHECK(::read(ready[0], &byte, 1) == 1);
    ::close(ready[0]);
    life_ = OwnedFd(life[1]);
  }
  ~OtherNamespace() {
    life_.Reset();
    ::waitpid(pid_, nullptr, 0);
  }
  // A path there, as it can be used from here.
  std::string Path(const std::string& path) const { return absl::StrCat("/proc/", pid_, "/root", path); }

 private:
  pid_t pid_;
  OwnedFd life_;
};

TEST_F(FreezeKernelTest, WhatOnlyAnotherNamespaceHasMountedIsFrozenAndListed) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  sandbox->Unmount({At("b")});  // Leaves its image.
  auto other = std::make_unique<OtherNamespace>(At("b.img"), At("b"));
  const std::string there = other->Path(At("b"));
  ASSERT_FALSE(IsFrozen(there));
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->frozen_size(), 2);
  std::map<std::string, std::string> seen_by;
  for (const pb::FrozenMount& mount : frozen->frozen()) seen_by[mount.mount_point()] = mount.seen_by();
  EXPECT_EQ(seen_by[At("a")], "");
  EXPECT_NE(seen_by[At("b")], "");
  EXPECT_TRUE(IsFrozen(there));
  EXPECT_EQ(frozen->disks_size(), 2);
  for (const pb::Disk& disk : frozen->disks()) {
    ASSERT_EQ(disk.uses_size(), 1) << disk.DebugString();
    EXPECT_EQ(disk.uses(0).state(), pb::DiskUse::FROZEN) << disk.DebugString();
  }
  EXPECT_EQ(Thaw("t").thawed(), 2u);
  EXPECT_FALSE(IsFrozen(there));
}

TEST_F(FreezeKernelTest, AMountOfAnotherNamespaceIsThawedByASuccessorToo) {
  sandbox->MountNew("ext4", "b.img", "b");
  sandbox->Unmount({At("b")});
  OtherNamespace other(At("b.img"), At("b"));
  ASSERT_EQ(Quiesce("t")->frozen_size(), 1);
  FreezeMarker marker(directory_ / "frozen");
  FakeHooks hooks;
  auto recovered = ThawAfterAgentDeath(agent_->freezer, marker, hooks, Clock::Real(), absl::Seconds(1));
  ASSERT_TRUE(recovered.ok()) << recovered.status();
  EXPECT_EQ((*recovered)->thaw.thawed(), 1u);
  EXPECT_FALSE(IsFrozen(other.Path(At("b"))));
}

TEST_F(FreezeKernelTest, ADeviceThatIsOpenForWritingIsNotCovered) {
  sandbox->MountNew("ext4", "a.img", "a");
  auto survey = agent_->freezer.Survey();
  ASSERT_TRUE(survey.ok());
  ASSERT_EQ(survey->mounts.size(), 1u);
  absl::StatusOr<OwnedFd> raw = OpenFile(survey->mounts[0].source, O_RDWR);
  ASSERT_TRUE(raw.ok()) << raw.status();
  auto frozen = Quiesce("t");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->disks_size(), 1);
  ASSERT_EQ(frozen->disks(0).uses_size(), 2);
  EXPECT_EQ(frozen->disks(0).uses(0).kind(), pb::DiskUse::OPENED);
  EXPECT_THAT(frozen->disks(0).uses(0).name(), ::testing::HasSubstr(absl::StrCat("(", ::getpid(), ")")));
  EXPECT_EQ(frozen->disks(0).uses(1).state(), pb::DiskUse::FROZEN);
  Thaw("t");
}

TEST_F(FreezeKernelTest, AMarkerOnAFrozenFileSystemIsRefused) {
  sandbox->MountNew("ext4", "a.img", "a");
  agent_ = std::make_unique<Agent>(At("a/marker/frozen"));
  EXPECT_EQ(Quiesce("t").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(IsFrozen(At("a")));
}

TEST_F(FreezeKernelTest, TheSuccessorOfAnAgentThatWasKilledThaws) {
  sandbox->MountNew("ext4", "a.img", "a");
  sandbox->MountNew("ext4", "b.img", "b");
  ASSERT_EQ(FreezeBehindItsBack(At("b")), 0);
  const std::string marker = directory_ / "other-frozen";
  pid_t doomed = ::fork();
  ASSERT_GE(doomed, 0);
  if (doomed == 0) {
    // Only this thread exists here: an agent of its own.
    Agent agent(marker);
    pb::QuiesceRequest request;
    request.set_token("doomed");
    request.set_lease_ms(600000);
    if (!agent.controller.Quiesce(request, "c").ok()) ::_exit(1);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(doomed, &status, 0), doomed);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(IsFrozen(At("a")));
  FreezeMarker left(marker);
  FakeHooks hooks;
  auto recovered = ThawAfterAgentDeath(agent_->freezer, left, hooks, Clock::Real(), absl::Seconds(1));
  ASSERT_TRUE(recovered.ok()) << recovered.status();
  ASSERT_TRUE(recovered->has_value());
  EXPECT_EQ((*recovered)->token, "doomed");
  EXPECT_EQ((*recovered)->thaw.thawed(), 1u);
  EXPECT_FALSE(IsFrozen(At("a")));
  EXPECT_TRUE(IsFrozen(At("b")));  // Not the agent's.
  EXPECT_FALSE(left.Exists());
}

TEST_F(FreezeKernelTest, ADiskThatAProcessHasMappedIsNotCoveredThoughItsDescriptorIsClosed) {
  LoopDevice device("raw.img");
  OwnedFd fd(::open(device.path().c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd.valid());
  void* mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  fd.Reset();
  auto frozen = Quiesce("t");
  ASSERT_EQ(::munmap(mapped, 4096), 0);
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const pb::Disk* disk = FindDisk(*frozen, device.path());
  ASSERT_NE(disk, nullptr);
  ASSERT_GE(disk->uses_size(), 1);
  EXPECT_EQ(disk->uses(0).kind(), pb::DiskUse::OPENED) << disk->DebugString();
  EXPECT_EQ(disk->uses(0).state(), pb::DiskUse::NOT_COVERED);
  EXPECT_THAT(disk->uses(0).name(), testing::HasSubstr(absl::StrCat("(", ::getpid(), ")")));
  Thaw("t");
}

TEST_F(FreezeKernelTest, AWriteToTheDeviceUnderAFrozenFileSystemIsTold) {
  sandbox->MountNew("ext4", "a.img", "a");
  std::string node;
  auto survey = agent_->freezer.Survey();
  ASSERT_TRUE(survey.ok());
  for (const MountEntry& mount : survey->mounts) node = mount.source;
  auto quiet = Quiesce("t");
  ASSERT_TRUE(quiet.ok()) << quiet.status();
  ASSERT_NE(FindDisk(*quiet, node), nullptr);
  EXPECT_EQ(Thaw("t").written_size(), 0);

  auto frozen = Quiesce("u");
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  // The boot block, which ext4 leaves alone; opened, written and closed between two looks.
  const std::string written(1024, 'x');
  OwnedFd fd(::open(node.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(fd.valid()) << "open " << node << ": " << std::strerror(errno);
  ASSERT_EQ(::pwrite(fd.get(), written.data(), written.size(), 0), static_cast<ssize_t>(written.size()));
  ASSERT_EQ(::fsync(fd.get()), 0);
  fd.Reset();
  EXPECT_THAT(Thaw("u").written(), ElementsAre(FindDisk(*frozen, node)->name()));
}

}  // namespace
}  // namespace still::agent
