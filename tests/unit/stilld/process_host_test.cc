// ProcessHost: workers that outlive it are found again, and ended by their own process id only.
#include "schedule/process_host.h"

#include <stdlib.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

class ProcessHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-host-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    const store::RepositoryOptions repository = {.path = JoinPath(dir_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    repository_ = *store::Repository::Open(repository);
    Restart("sleep 60");
  }
  void TearDown() override {
    for (int64_t run = 1; run < 4; ++run) host_->Stop(run);
    host_.reset();
    repository_.reset();
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  // The run's id becomes $0 of the script.
  void Restart(const std::string& script) {
    host_ = std::make_unique<ProcessHost>(
        *repository_, HostIdentity(),
        ProcessHostOptions{.state = dir_, .command = {"/bin/sh", "-c", "exec " + script}});
  }
  bool EndsSoon(int64_t run) {
    for (absl::Duration end = Clock::Real().Monotonic() + absl::Seconds(20); Clock::Real().Monotonic() < end;) {
      if (!host_->Alive(run)) return true;
      Clock::Real().Sleep(absl::Milliseconds(5));
    }
    return false;
  }
  std::string dir_;
  std::unique_ptr<store::Repository> repository_;
  std::unique_ptr<ProcessHost> host_;
};

TEST_F(ProcessHostTest, AWorkerIsAliveUntilItEnds) {
  EXPECT_FALSE(host_->Alive(1));
  ASSERT_TRUE(host_->Start({}, {.id = 1}).ok());
  EXPECT_TRUE(host_->Alive(1));
  host_->Stop(1);
  EXPECT_TRUE(EndsSoon(1));
}

TEST_F(ProcessHostTest, AWorkerOutlivesItsMakerAndIsFoundAndEndedByTheNext) {
  ASSERT_TRUE(host_->Start({}, {.id = 2}).ok());
  Restart("true");
  EXPECT_TRUE(host_->Alive(2));
  ASSERT_TRUE(host_->SweepLocks().ok());
  EXPECT_TRUE(host_->Alive(2)) << "what is held is not swept";
  host_->Stop(2);
  EXPECT_TRUE(EndsSoon(2));
}

// Beside the environment, which the worker's hooks inherit.
TEST_F(ProcessHostTest, AWorkerGetsThePassphraseInADescriptor) {
  const std::string said = JoinPath(dir_, "said");
  const std::string script = absl::StrCat("cat /proc/self/fd/$2 > ", said, "; echo \" $1\" >> ", said);
  host_ = std::make_unique<ProcessHost>(
      *repository_, HostIdentity(),
      ProcessHostOptions{.state = dir_, .command = {"/bin/sh", "-c", script}, .passphrase = "correct horse"});
  ASSERT_TRUE(host_->Start({}, {.id = 1}).ok());
  ASSERT_TRUE(EndsSoon(1));
  EXPECT_EQ(ReadFile(said, 1000).value_or(""), "correct horse --secret-fd\n");
}

TEST_F(ProcessHostTest, ALockThatNobodyHoldsIsNobody) {
  ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "runs")).ok());
  // Process 1 lives; that it is named here means nothing.
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "runs/3"), "1").ok());
  EXPECT_FALSE(host_->Alive(3));
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "runs/3"), "1").ok());
  ASSERT_TRUE(host_->SweepLocks().ok());
  EXPECT_FALSE(PathExists(JoinPath(dir_, "runs/3")));
}

}  // namespace
}  // namespace still::schedule
