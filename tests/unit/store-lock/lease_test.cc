// Leases in a world of our own: one clock, several hosts, boots and processes, all on one thread.
#include "store/lock/lease.h"

#include <functional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/object/directory_store.h"
#include "tests/support/fault/fault_store.h"
#include "tests/support/fault/simulated_disk.h"

namespace still::store {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr absl::Duration kTerm = absl::Minutes(2);

// Moves only when somebody sleeps or the test says so.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::FromUnixSeconds(1'700'000'000) + now_; }
  absl::Duration Monotonic() const override { return now_; }
  void Sleep(absl::Duration duration) override {
    now_ += duration;
    // A copy: the hook may replace itself.
    if (std::function<void()> hook = on_sleep) hook();
  }
  void Advance(absl::Duration duration) { now_ += duration; }
  std::function<void()> on_sleep;

 private:
  absl::Duration now_ = absl::Hours(1);
};

class FakeProcess final : public ProcessView {
 public:
  FakeProcess(ProcessIdentity self, const std::set<std::pair<int64_t, uint64_t>>& running)
      : self_(std::move(self)), running_(running) {}
  const ProcessIdentity& self() const override { return self_; }
  bool IsRunning(int64_t pid, uint64_t start) const override { return running_.contains({pid, start}); }

 private:
  const ProcessIdentity self_;
  const std::set<std::pair<int64_t, uint64_t>>& running_;
};

class LeaseTest : public ::testing::Test {
 protected:
  LeaseTest() { SetLogLevel(LogLevel::kError); }

  static ProcessIdentity Here(int64_t pid) {
    return {.host = "machine:here",
            .boot = "boot-2",
            .pid_namespace = 1,
            .pid = pid,
            .start_ticks = static_cast<uint64_t>(1000 + pid)};
  }
  static ProcessIdentity Elsewhere(int64_t pid) {
    ProcessIdentity identity = Here(pid);
    identity.host = "machine:elsewhere";
    return identity;
  }
  LeaseKeeper Keeper(const ProcessView& process) { return LeaseKeeper(store_, clock_, process); }
  static LeaseOptions Options(LeaseKind kind, absl::Duration wait = absl::ZeroDuration()) {
    return {.kind = kind, .purpose = "test", .wait = wait, .term = kTerm, .background_renewal = false};
  }
  size_t Objects() { return store_.List("locks/")->size(); }
  // A lease whose holder never comes back to it.
  std::string LeaveBehind(ProcessIdentity holder, LeaseKind kind) {
    std::string name = absl::StrCat("locks/left", ++left_behind_);
    EXPECT_TRUE(store_.Put(name, EncodeLease({.kind = kind, .purpose = "lost", .holder = holder, .term = kTerm})).ok());
    return name;
  }

  SimulatedDisk disk_{1};
  std::unique_ptr<DirectoryObjectStore> directory_ = *DirectoryObjectStore::Open(disk_.root(), disk_);
  FaultObjectStore store_{*directory_, 1};
  ManualClock clock_;
  std::set<std::pair<int64_t, uint64_t>> running_ = {{1, 1001}, {2, 1002}, {3, 1003}};
  FakeProcess first_{Here(1), running_};
  FakeProcess second_{Here(2), running_};
  FakeProcess remote_{Elsewhere(1), running_};
  int left_behind_ = 0;
};

TEST_F(LeaseTest, SharedOnesGoTogetherAndAnExclusiveOneGoesAlone) {
  LeaseKeeper first = Keeper(first_);
  LeaseKeeper second = Keeper(remote_);
  {
    absl::StatusOr<Lease> one = first.Acquire(Options(LeaseKind::kShared));
    absl::StatusOr<Lease> two = second.Acquire(Options(LeaseKind::kShared));
    ASSERT_TRUE(one.ok() && two.ok());
    EXPECT_TRUE(one->Check().ok());
    absl::Status refused = second.Acquire(Options(LeaseKind::kExclusive)).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(refused.message(), HasSubstr("test (pid 1 on "));
  }
  EXPECT_EQ(Objects(), 0u) << "given up with their objects";
  absl::StatusOr<Lease> alone = first.Acquire(Options(LeaseKind::kExclusive));
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_FALSE(second.Acquire(Options(LeaseKind::kShared)).ok());
  EXPECT_FALSE(second.Acquire(Options(LeaseKind::kExclusive)).ok());
  EXPECT_EQ(Objects(), 1u) << "those refused leave nothing behind";
  EXPECT_TRUE(alone->Release().ok());
  EXPECT_TRUE(alone->Release().ok());
  EXPECT_EQ(alone->Check().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(second.Acquire(Options(LeaseKind::kShared)).ok());
}

TEST_F(LeaseTest, WaitingEndsWhenTheHolderLetsGo) {
  LeaseKeeper first = Keeper(first_);
  LeaseKeeper second = Keeper(second_);
  for (LeaseKind kind : {LeaseKind::kShared, LeaseKind::kExclusive}) {
    absl::StatusOr<Lease> held = first.Acquire(Options(LeaseKind::kExclusive));
    ASSERT_TRUE(held.ok());
    int sleeps = 0;
    clock_.on_sleep = [&] {
      if (++sleeps == 5) {
        EXPECT_TRUE(held->Release().ok());
      }
    };
    absl::StatusOr<Lease> waited = second.Acquire(Options(kind, absl::Minutes(1)));
    clock_.on_sleep = nullptr;
    EXPECT_TRUE(waited.ok()) << waited.status();
    EXPECT_EQ(sleeps, 5);
  }
}

// A capture that waits for a sweep comes before the next sweep.
TEST_F(LeaseTest, AWaitingSharedLeaseKeepsExclusiveOnesOut) {
  LeaseKeeper first = Keeper(first_);
  LeaseKeeper second = Keeper(second_);
  absl::StatusOr<Lease> sweep = first.Acquire(Options(LeaseKind::kExclusive));
  ASSERT_TRUE(sweep.ok());
  absl::Status next_sweep;
  clock_.on_sleep = [&] {
    clock_.on_sleep = nullptr;
    EXPECT_TRUE(sweep->Release().ok());
    next_sweep = first.Acquire(Options(LeaseKind::kExclusive)).status();
  };
  EXPECT_TRUE(second.Acquire(Options(LeaseKind::kShared, absl::Minutes(1))).ok());
  EXPECT_EQ(next_sweep.code(), absl::StatusCode::kUnavailable);
}

TEST_F(LeaseTest, ADeadProcessOfThisBootIsStaleAtOnce) {
  LeaveBehind(Here(99), LeaseKind::kExclusive);
  EXPECT_TRUE(Keeper(first_).Acquire(Options(LeaseKind::kShared)).ok());
  EXPECT_EQ(Objects(), 0u);
}

TEST_F(LeaseTest, AReusedProcessNumberIsStaleAtOnce) {
  ProcessIdentity reused = Here(2);
  reused.start_ticks = 7;
  LeaveBehind(reused, LeaseKind::kExclusive);
  EXPECT_TRUE(Keeper(first_).Acquire(Options(LeaseKind::kExclusive)).ok());
}

TEST_F(LeaseTest, AnEarlierBootOfThisHostIsStaleAtOnce) {
  ProcessIdentity before = Here(2);
  before.boot = "boot-1";
  LeaveBehind(before, LeaseKind::kExclusive);
  EXPECT_TRUE(Keeper(first_).Acquire(Options(LeaseKind::kExclusive)).ok());
}

TEST_F(LeaseTest, WhatCannotBeLookedAtIsStaleOnlyAfterItWasWatched) {
  ProcessIdentity container = Here(99);
  container.pid_namespace = 2;
  for (const ProcessIdentity& holder : {Elsewhere(99), container}) {
    std::string name = LeaveBehind(holder, LeaseKind::kExclusive);
    // It may be as old as it likes: what counts is for how long we have watched it.
    clock_.Advance(absl::Hours(24));
    LeaseKeeper keeper = Keeper(first_);
    const absl::Duration began = clock_.Monotonic();
    EXPECT_EQ(keeper.Acquire(Options(LeaseKind::kShared, 1.4 * kTerm)).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(keeper.Acquire(Options(LeaseKind::kShared, kTerm)).ok());
    EXPECT_GE(clock_.Monotonic() - began, 1.5 * kTerm);
    EXPECT_LE(clock_.Monotonic() - began, 1.6 * kTerm);
    EXPECT_EQ(store_.Size(name).status().code(), absl::StatusCode::kNotFound);
  }
}

class MemoryBook final : public SightingBook {
 public:
  absl::StatusOr<std::map<std::string, LeaseSighting>> Load() override { return sightings; }
  absl::Status Keep(const std::map<std::string, LeaseSighting>& all) override {
    sightings = all;
    return absl::OkStatus();
  }
  std::map<std::string, LeaseSighting> sightings;
};

TEST_F(LeaseTest, SeveralShortLooksAreAsGoodAsALongOne) {
  MemoryBook book;
  LeaveBehind(Elsewhere(99), LeaseKind::kExclusive);
  for (int look = 0; look < 3; ++look) {
    LeaseKeeper keeper(store_, clock_, first_, &book);
    EXPECT_EQ(keeper.Acquire(Options(LeaseKind::kShared)).status().code(), absl::StatusCode::kUnavailable) << look;
    clock_.Advance(0.5 * kTerm);
  }
  LeaseKeeper keeper(store_, clock_, first_, &book);
  EXPECT_TRUE(keeper.Acquire(Options(LeaseKind::kShared)).ok());
}

TEST_F(LeaseTest, ALeaseThatWasRenewedBetweenTwoLooksIsLive) {
  MemoryBook book;
  LeaseKeeper remote = Keeper(remote_);
  absl::StatusOr<Lease> held = remote.Acquire(Options(LeaseKind::kShared));
  ASSERT_TRUE(held.ok());
  for (int look = 0; look < 5; ++look) {
    LeaseKeeper keeper(store_, clock_, first_, &book);
    EXPECT_EQ(keeper.Acquire(Options(LeaseKind::kExclusive)).status().code(), absl::StatusCode::kUnavailable) << look;
    clock_.Advance(0.9 * kTerm);
    ASSERT_TRUE(held->Renew().ok());
  }
  // A sighting from a clock that has gone back says nothing.
  for (auto& [name, sighting] : book.sightings) sighting.since = clock_.Monotonic() + absl::Hours(1);
  clock_.Advance(0.9 * kTerm);
  LeaseKeeper keeper(store_, clock_, first_, &book);
  EXPECT_FALSE(keeper.Acquire(Options(LeaseKind::kExclusive)).ok());
}

TEST_F(LeaseTest, ALeaseThatIsRenewedElsewhereIsNeverStale) {
  LeaseKeeper remote = Keeper(remote_);
  absl::StatusOr<Lease> held = remote.Acquire(Options(LeaseKind::kShared));
  ASSERT_TRUE(held.ok());
  clock_.on_sleep = [&, next = clock_.Monotonic()]() mutable {
    if (clock_.Monotonic() < next) return;
    next = clock_.Monotonic() + kTerm / 4;
    EXPECT_TRUE(held->Renew().ok());
  };
  EXPECT_FALSE(Keeper(first_).Acquire(Options(LeaseKind::kExclusive, 10 * kTerm)).ok());
  clock_.on_sleep = nullptr;
  EXPECT_TRUE(held->Check().ok());
}

TEST_F(LeaseTest, WhatCannotBeReadCountsAsExclusiveUntilItWasWatched) {
  ASSERT_TRUE(store_.Put("locks/torn", "").ok());
  ASSERT_TRUE(store_.Put("locks/long", std::string(kMaxLeaseBytes + 1, 'x')).ok());
  ASSERT_TRUE(store_.Put("locks/newer", "stillpoint-lease 2\n").ok());
  LeaseKeeper keeper = Keeper(first_);
  EXPECT_FALSE(keeper.Acquire(Options(LeaseKind::kShared, kTerm)).ok());
  EXPECT_THAT(*keeper.List(), SizeIs(3));
  EXPECT_TRUE(keeper.Acquire(Options(LeaseKind::kShared, kTerm)).ok());
}

TEST_F(LeaseTest, AHolderThatCouldNotRenewHasLostItForEver) {
  LeaseKeeper keeper = Keeper(first_);
  absl::StatusOr<Lease> lease = keeper.Acquire(Options(LeaseKind::kShared));
  ASSERT_TRUE(lease.ok());
  clock_.Advance(kTerm - absl::Milliseconds(1));
  EXPECT_TRUE(lease->Check().ok());
  EXPECT_TRUE(lease->Renew().ok());
  clock_.Advance(kTerm - absl::Milliseconds(1));
  EXPECT_TRUE(lease->Check().ok()) << "the renewal counts";
  store_.FailAt(1, absl::UnavailableError("the network is down"));
  EXPECT_EQ(lease->Renew().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(lease->Check().ok()) << "still in its term";
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(lease->Check().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(lease->Renew().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(lease->Check().code(), absl::StatusCode::kAborted);
}

TEST_F(LeaseTest, ADeletedLeaseIsNotPutBack) {
  LeaseKeeper keeper = Keeper(first_);
  absl::StatusOr<Lease> lease = keeper.Acquire(Options(LeaseKind::kShared));
  ASSERT_TRUE(lease.ok());
  ASSERT_TRUE(store_.Delete(lease->name()).ok());
  EXPECT_EQ(lease->Renew().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(lease->Check().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Objects(), 0u);
}

// Watchers give up on a lease only after its holder has.
TEST_F(LeaseTest, NobodyTakesOverWhileTheHolderStillBelieves) {
  LeaseKeeper holder = Keeper(remote_);
  LeaseKeeper watcher = Keeper(first_);
  absl::StatusOr<Lease> lease = holder.Acquire(Options(LeaseKind::kShared));
  ASSERT_TRUE(lease.ok());
  clock_.on_sleep = [&] {
    if (Objects() == 0) {
      EXPECT_FALSE(lease->Check().ok());
    }
  };
  EXPECT_TRUE(watcher.Acquire(Options(LeaseKind::kExclusive, 2 * kTerm)).ok());
  clock_.on_sleep = nullptr;
  EXPECT_EQ(lease->Check().code(), absl::StatusCode::kAborted);
}

// Another process takes its turn before the k-th call to the store, for every k: the two never hold what excludes the
// other, and at least one of them gets it when nobody else is there.
TEST_F(LeaseTest, NoInterleavingLetsBothIn) {
  for (LeaseKind mine : {LeaseKind::kShared, LeaseKind::kExclusive}) {
    for (LeaseKind theirs : {LeaseKind::kShared, LeaseKind::kExclusive}) {
      if (mine == LeaseKind::kShared && theirs == LeaseKind::kShared) continue;
      for (int k = 1; k < 40; ++k) {
        SCOPED_TRACE(absl::StrCat("before call ", k));
        LeaseKeeper first = Keeper(first_);
        LeaseKeeper second = Keeper(second_);
        absl::StatusOr<Lease> other = absl::UnknownError("has not tried");
        int calls = 0;
        store_.BeforeEach([&](const FaultObjectStore::Call&) {
          if (++calls == k) other = second.Acquire(Options(theirs));
        });
        absl::StatusOr<Lease> lease = first.Acquire(Options(mine));
        store_.BeforeEach(nullptr);
        ASSERT_FALSE(lease.ok() && other.ok());
        if (calls < k) {
          ASSERT_TRUE(lease.ok()) << lease.status();
          ASSERT_GT(k, 5) << "the calls were not counted";
          break;
        }
        lease = absl::UnknownError("given up");
        other = absl::UnknownError("given up");
        ASSERT_EQ(Objects(), 0u) << "whoever was refused has withdrawn";
      }
    }
  }
}

TEST_F(LeaseTest, AnErrorOfTheStoreAtAnyCallLeavesNoLease) {
  for (int k = 1; k < 40; ++k) {
    LeaseKeeper keeper = Keeper(first_);
    store_.FailAt(k, absl::DataLossError("Input/output error"));
    {
      absl::StatusOr<Lease> lease = keeper.Acquire(Options(LeaseKind::kExclusive));
      bool done = lease.ok();
      store_.FailAt(0, absl::OkStatus());
      EXPECT_TRUE(done || absl::IsDataLoss(lease.status())) << lease.status();
      if (done && k > 3) break;
    }
    EXPECT_EQ(Objects(), 0u) << k;
    ASSERT_LT(k, 39);
  }
}

TEST_F(LeaseTest, TermsOutOfBoundsAreRefused) {
  for (absl::Duration term : {absl::ZeroDuration(), kMinLeaseTerm / 2, 2 * kMaxLeaseTerm}) {
    LeaseOptions options = Options(LeaseKind::kShared);
    options.term = term;
    EXPECT_EQ(Keeper(first_).Acquire(options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace still::store
