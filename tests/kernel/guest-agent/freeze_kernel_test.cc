// The controller over the kernel's own FIFREEZE and FITHAW.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/match.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest-agent/freeze_controller.h"
#include "tests/kernel/guest-agent/sandbox.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

Sandbox* sandbox = nullptr;
std::string skip_reason;

class SandboxEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    owned_ = Sandbox::Make(skip_reason);
    sandbox = owned_.get();
  }
  void TearDown() override { owned_.reset(); }

 private:
  std::unique_ptr<Sandbox> owned_;
};
const auto* const environment = ::testing::AddGlobalTestEnvironment(new SandboxEnvironment);

std::string At(absl::string_view name) { return *sandbox / name; }

// An agent's parts, with the machine's clock and timer.
struct Agent {
  explicit Agent(const std::string& marker) : marker_path(marker) {}
  std::string marker_path;
  SandboxFreezer freezer{*sandbox};
  FakeHooks hooks;
  std::unique_ptr<LeaseTimer> timer = *MakeKernelLeaseTimer();
  FreezeController controller{{.freezer = freezer,
                               .hooks = hooks,
                               .marker = FreezeMarker(marker_path),
                               .timer = *timer,
                               .clock = Clock::Real()}};
};

class FreezeKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (sandbox == nullptr) GTEST_SKIP() << skip_reason;
    sandbox->Alive();
    agent_ = std::make_unique<Agent>(directory_ / "frozen");
  }
  void TearDown() override {
    if (sandbox == nullptr) return;
    agent_.reset();
    sandbox->ThawAndUnmountAll();
  }

  absl::StatusOr<pb::QuiesceResponse> Quiesce(const std::string& token, uint32_t lease_ms = 20000,
                                              std::vector<std::string> mounts = {}) {
    pb::QuiesceRequest request;
    request.set_token(token);
    request.set_lease_ms(lease_ms);
    for (std::string& mount : mounts) request.add_mounts(std::move(mount));
    return agent_->controller.Quiesce(request, "test");
  }
  pb::ThawResponse Thaw(const std::string& token) {
    pb::ThawRequest request;
    request.set_token(token);
    auto thawed = agent_->controller.Thaw(request);
    EXPECT_TRUE(thawed.ok()) << thawed.status();
    return thawed.value_or(pb::ThawResponse());
  }
  static std::vector<std::string> Frozen(const pb::QuiesceResponse& response) {
    std::vector<std::string> names;
    for (const auto& mount : response.frozen()) names.push_back(mount.mount_point());
    return names;
  }
  static std::map<std::string, pb::SkippedMount::Reason> Skipped(const pb::QuiesceResponse& response) {
    std::map<std::string, pb::SkippedMount::Reason> reasons;
    for (const auto& skipped : response.skipped()) reasons[skipped.mount_point()] = skipped.reason();
    return reasons;
  }
  // A writer stands still now, and goes on when `thaw` has run.
  static void ExpectWritersWaitFor(const std::vector<std::string>& names, const std::function<void()>& thaw) {
    std::vector<std::unique_ptr<Writer>> writers;
    for (const std::string& name : names) writers.push_back(std::make_unique<Writer>(At(name)));
    for (auto& writer : writers) EXPECT_TRUE(Eventually([&] { return writer->IsBlocked(); }));
    thaw();
    for (auto& writer : writers) EXPECT_TRUE(Eventually([&] { return writer->HasEnded(); }));
  }

  TempDir directory_;  // For the marker: outside of what is frozen.
  std::unique_ptr<Agent> agent_;
};

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
  ExpectWritersWaitFor({"btrfs", "sub"}, [&] { EXPECT_EQ(Thaw("t").thawed(), 1u); });
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
  ASSERT_TRUE(Quiesce("t", 300).ok());
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

}  // namespace
}  // namespace still::agent
