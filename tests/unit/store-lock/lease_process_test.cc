// Leases between real processes, on a real directory.
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/lock/lease.h"
#include "store/object/directory_store.h"

namespace still::store {
namespace {

class LeaseProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    SetLogLevel(LogLevel::kError);
    std::string pattern = JoinPath(::testing::TempDir(), "still-leases-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "store")).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::unique_ptr<ObjectStore> OpenStore() { return *DirectoryObjectStore::Open(JoinPath(dir_, "store")); }
  std::string dir_;
};

TEST_F(LeaseProcessTest, TheLeaseOfAKilledProcessIsTakenOverAtOnce) {
  absl::StatusOr<SocketPair> pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::unique_ptr<ObjectStore> store = OpenStore();
    LeaseKeeper keeper(*store, Clock::Real(), **ProcessView::Real());
    absl::StatusOr<Lease> lease = keeper.Acquire({.kind = LeaseKind::kShared, .purpose = "child"});
    if (!lease.ok() || ::write(pair->second.get(), "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  std::unique_ptr<ObjectStore> store = OpenStore();
  LeaseKeeper keeper(*store, Clock::Real(), **ProcessView::Real());
  EXPECT_TRUE(WaitReadable(pair->first.get(), absl::Seconds(30), "child").ok());
  EXPECT_EQ(keeper.Acquire({.kind = LeaseKind::kExclusive}).status().code(), absl::StatusCode::kUnavailable);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  absl::StatusOr<Lease> lease = keeper.Acquire({.kind = LeaseKind::kExclusive, .purpose = "parent"});
  EXPECT_TRUE(lease.ok()) << lease.status();
}

// Reads, thinks, writes: only right if nobody else does the same in between.
bool CountUp(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, 100);
  int value = 0;
  if (text.ok() && !absl::SimpleAtoi(*text, &value)) return false;
  return WriteFileAtomically(path, absl::StrCat(value + 1)).ok();
}

TEST_F(LeaseProcessTest, ProcessesExcludeEachOther) {
  constexpr int kProcesses = 4;
  constexpr int kTurns = 6;
  const std::string counter = JoinPath(dir_, "counter");
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::unique_ptr<ObjectStore> store = OpenStore();
      LeaseKeeper keeper(*store, Clock::Real(), **ProcessView::Real());
      for (int i = 0; i < kTurns; ++i) {
        absl::StatusOr<Lease> lease = keeper.Acquire({.kind = LeaseKind::kExclusive, .wait = absl::Seconds(100)});
        if (!lease.ok() || !CountUp(counter) || !lease->Check().ok()) ::_exit(1);
      }
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_EQ(*ReadFile(counter, 100), absl::StrCat(kProcesses * kTurns));
  EXPECT_THAT(*OpenStore()->List("locks/"), ::testing::IsEmpty());
}

TEST_F(LeaseProcessTest, AThreadRenewsALeaseBeyondItsTerm) {
  std::unique_ptr<ObjectStore> store = OpenStore();
  LeaseKeeper keeper(*store, Clock::Real(), **ProcessView::Real());
  absl::StatusOr<Lease> lease = keeper.Acquire({.kind = LeaseKind::kShared, .term = kMinLeaseTerm});
  ASSERT_TRUE(lease.ok()) << lease.status();
  const absl::Duration deadline = Clock::Real().Monotonic() + absl::Seconds(60);
  const absl::Duration past_its_term = Clock::Real().Monotonic() + kMinLeaseTerm * 1.2;
  uint64_t renewals = 0;
  while ((renewals < 5 || Clock::Real().Monotonic() < past_its_term) && Clock::Real().Monotonic() < deadline) {
    Clock::Real().Sleep(absl::Milliseconds(20));
    absl::StatusOr<std::vector<LeaseInfo>> leases = keeper.List();
    ASSERT_TRUE(leases.ok() && leases->size() == 1);
    renewals = leases->front().record.renewals;
  }
  EXPECT_GE(renewals, 5u);
  EXPECT_TRUE(lease->Check().ok());
}

TEST(ProcessViewTest, KnowsWhoRuns) {
  absl::StatusOr<const ProcessView*> view = ProcessView::Real();
  ASSERT_TRUE(view.ok()) << view.status();
  const ProcessIdentity& self = (*view)->self();
  EXPECT_EQ(self.pid, ::getpid());
  EXPECT_NE(self.boot, "");
  EXPECT_NE(self.pid_namespace, 0u);
  EXPECT_TRUE((*view)->IsRunning(self.pid, self.start_ticks));
  EXPECT_FALSE((*view)->IsRunning(self.pid, self.start_ticks + 1)) << "the number was used again";
  EXPECT_FALSE((*view)->IsRunning(0, 1));
  EXPECT_FALSE((*view)->IsRunning(-1, 1));
  EXPECT_FALSE((*view)->IsRunning(int64_t{1} << 40, 1));
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_FALSE((*view)->IsRunning(child, 1));
}

}  // namespace
}  // namespace still::store
