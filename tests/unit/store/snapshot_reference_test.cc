#include "store/snapshot_reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace still::store {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using Snapshot = stillpoint::manifest::v1::Snapshot;

constexpr absl::Time kNow = absl::FromUnixSeconds(1'700'000'000);

Snapshot Make(const std::string& id, const std::string& name, const std::string& session, absl::Duration age) {
  Snapshot snapshot;
  snapshot.set_id(id);
  snapshot.set_name(name);
  snapshot.set_session(session);
  snapshot.set_point_unix_ns(absl::ToUnixNanos(kNow - age));
  return snapshot;
}

class SnapshotReferenceTest : public ::testing::Test {
 protected:
  // What the reference stands for, or the error's code name.
  std::string Find(const std::string& reference) {
    absl::StatusOr<size_t> found = ResolveSnapshot(snapshots_, reference, {.now = kNow, .here = here_});
    return found.ok() ? snapshots_[*found].id() : absl::StatusCodeToString(found.status().code());
  }
  std::string Message(const std::string& reference) {
    return std::string(ResolveSnapshot(snapshots_, reference, {.now = kNow, .here = here_}).status().message());
  }

  HostIdentity here_;
  std::vector<Snapshot> snapshots_ = {
      Make("aaaa1111", "before-upgrade", "web", absl::Hours(24 * 9)),
      Make("aaaa2222", "", "db", absl::Hours(24 * 3)),
      Make("bbbb3333", "nightly-1", "web", absl::Hours(48)),
      Make("cccc4444", "nightly-2", "web", absl::Hours(24)),
      Make("dddd5555", "latest-of-db", "db", absl::Hours(2)),
      Make("eeee6666", "", "web-staging", absl::Hours(1)),
  };
};

TEST_F(SnapshotReferenceTest, NamesIdsAndTheirUniqueBeginnings) {
  EXPECT_EQ(Find("nightly-1"), "bbbb3333");
  EXPECT_EQ(Find("bbbb3333"), "bbbb3333");
  EXPECT_EQ(Find("bbbb"), "bbbb3333");
  EXPECT_EQ(Find("b"), "aaaa1111") << "a name's beginning may be short, an id's may not";
  EXPECT_EQ(Find("before"), "aaaa1111");
}

TEST_F(SnapshotReferenceTest, ANameGoesBeforeWhatItAbbreviates) {
  snapshots_.push_back(Make("ffff7777", "nightly", "web", absl::ZeroDuration()));
  EXPECT_EQ(Find("nightly"), "ffff7777");
}

TEST_F(SnapshotReferenceTest, AnAmbiguousBeginningListsWhatItCouldBe) {
  EXPECT_EQ(Find("nightly"), "FAILED_PRECONDITION");
  EXPECT_THAT(Message("nightly"), HasSubstr("nightly-1 (bbbb3333), nightly-2 (cccc4444)"));
  EXPECT_THAT(Message("aaaa"), HasSubstr("before-upgrade (aaaa1111), aaaa2222"));
}

TEST_F(SnapshotReferenceTest, ABeginningOfANameAndOfAnIdIsAmbiguous) {
  snapshots_.push_back(Make("00001111", "cccc-name", "web", absl::ZeroDuration()));
  EXPECT_EQ(Find("cccc"), "FAILED_PRECONDITION");
}

TEST_F(SnapshotReferenceTest, LatestOfAllAndOfASession) {
  EXPECT_EQ(Find("latest"), "eeee6666");
  EXPECT_EQ(Find("@latest"), "eeee6666");
  EXPECT_EQ(Find("web@latest"), "cccc4444") << "the session web, not those that begin like it";
  EXPECT_EQ(Find("web-s@latest"), "eeee6666");
  EXPECT_EQ(Find("d@latest"), "dddd5555");
}

TEST_F(SnapshotReferenceTest, TheNewestThatIsOldEnough) {
  EXPECT_EQ(Find("web@2d"), "bbbb3333") << "exactly two days old is old enough";
  EXPECT_EQ(Find("web@49h"), "aaaa1111");
  EXPECT_EQ(Find("web@1w"), "aaaa1111");
  EXPECT_EQ(Find("@90m"), "dddd5555");
  EXPECT_EQ(Find("web@0s"), "cccc4444");
  EXPECT_EQ(Find("web@10d"), "NOT_FOUND");
  EXPECT_THAT(Message("web@10d"), HasSubstr("none that old"));
}

TEST_F(SnapshotReferenceTest, AMistypedSessionIsNamed) {
  EXPECT_EQ(Find("wbe@latest"), "NOT_FOUND");
  EXPECT_THAT(Message("wbe@latest"), HasSubstr("did you mean \"web\"?"));
  snapshots_.push_back(Make("ffff7777", "", "webshop", absl::ZeroDuration()));
  snapshots_.erase(snapshots_.begin() + 2, snapshots_.begin() + 4);
  snapshots_.erase(snapshots_.begin());
  EXPECT_EQ(Find("web@latest"), "FAILED_PRECONDITION");
  EXPECT_THAT(Message("web@latest"), HasSubstr("web-staging, webshop"));
}

TEST_F(SnapshotReferenceTest, ANameWithAnAtSignIsANameFirst) {
  snapshots_.push_back(Make("ffff7777", "web@2d", "web", absl::ZeroDuration()));
  snapshots_.push_back(Make("ffff8888", "web@home", "web", absl::ZeroDuration()));
  EXPECT_EQ(Find("web@2d"), "ffff7777");
  EXPECT_EQ(Find("web@h"), "ffff8888") << "what is no age is the beginning of a name";
}

TEST_F(SnapshotReferenceTest, MistypedNamesGetASuggestion) {
  EXPECT_EQ(Find("befroe-upgrade"), "NOT_FOUND");
  EXPECT_THAT(Message("befroe-upgrade"), HasSubstr("did you mean \"before-upgrade\"?"));
  EXPECT_THAT(Message("lastest"), HasSubstr("did you mean \"latest\"?"));
  EXPECT_THAT(Message("production"), Not(HasSubstr("did you mean")));
}

TEST_F(SnapshotReferenceTest, NothingMatchesAnEmptyRepositoryOrAnEmptyName) {
  EXPECT_EQ(Find(""), "INVALID_ARGUMENT");
  snapshots_.clear();
  EXPECT_EQ(Find("latest"), "NOT_FOUND");
  EXPECT_EQ(Find("web@latest"), "NOT_FOUND");
  EXPECT_EQ(Find("anything"), "NOT_FOUND");
}

TEST_F(SnapshotReferenceTest, WhatIsRemovedMustBeNamedInFull) {
  const Snapshot& nightly = snapshots_[2];
  EXPECT_TRUE(NamedInFull(nightly, "nightly-1"));
  EXPECT_TRUE(NamedInFull(nightly, "bbbb3333"));
  EXPECT_TRUE(NamedInFull(nightly, "bbbb"));
  EXPECT_FALSE(NamedInFull(nightly, "web@2d")) << "the second time it is another one";
  EXPECT_FALSE(NamedInFull(nightly, "latest"));
  EXPECT_FALSE(NamedInFull(nightly, "host/web@latest"));
  EXPECT_FALSE(NamedInFull(nightly, "nightly"));
  EXPECT_FALSE(NamedInFull(nightly, "n"));
}

constexpr char kHereId[] = "1111aaaa000000000000000000000000";
constexpr char kThereId[] = "2222bbbb000000000000000000000000";

Snapshot On(Snapshot snapshot, const std::string& host_id, const std::string& host) {
  snapshot.set_host_id(host_id);
  snapshot.set_host(host);
  return snapshot;
}

// Two hosts have a machine "web" in one repository.
class TwoHostsTest : public SnapshotReferenceTest {
 protected:
  void SetUp() override {
    here_ = {.id = kHereId, .name = "alpha"};
    snapshots_ = {On(Make("aaaa1111", "", "web", absl::Hours(72)), "", "alpha"),
                  On(Make("aaaa2222", "", "web", absl::Hours(71)), "", "beta"),
                  On(Make("bbbb1111", "", "web", absl::Hours(48)), kHereId, "alpha"),
                  On(Make("bbbb2222", "", "web", absl::Hours(2)), kThereId, "beta"),
                  On(Make("cccc2222", "", "db", absl::Hours(1)), kThereId, "beta")};
  }
};

TEST_F(TwoHostsTest, WhatIsNewestIsAskedOfThisHost) {
  EXPECT_EQ(Find("latest"), "bbbb1111");
  EXPECT_EQ(Find("web@latest"), "bbbb1111");
  EXPECT_EQ(Find("@latest"), "bbbb1111");
  EXPECT_EQ(Find("web@60h"), "aaaa1111") << "old snapshots are told apart by the host's name";
  EXPECT_EQ(Find("db@latest"), "NOT_FOUND");
  EXPECT_EQ(Find("cccc2222"), "cccc2222") << "an id is an id on every host";
}

TEST_F(TwoHostsTest, AnotherHostIsNamedByItsNameOrId) {
  EXPECT_EQ(Find("beta/web@latest"), "bbbb2222");
  EXPECT_EQ(Find("beta/latest"), "cccc2222");
  EXPECT_EQ(Find("2222/web@latest"), "bbbb2222");
  EXPECT_EQ(Find("alpha/web@60h"), "aaaa1111") << "with the old ones that have its name";
  EXPECT_EQ(Find("gamma/web@latest"), "NOT_FOUND");
  EXPECT_THAT(Message("gamma/web@latest"), HasSubstr("beta (2222bbbb0000)"));
}

TEST_F(TwoHostsTest, HostsOfOneNameAreToldApartByTheirIds) {
  for (Snapshot& snapshot : snapshots_) snapshot.set_host("alpha");
  snapshots_.erase(snapshots_.begin(), snapshots_.begin() + 2);
  EXPECT_EQ(Find("web@latest"), "bbbb1111");
  EXPECT_EQ(Find("alpha/web@latest"), "FAILED_PRECONDITION");
  EXPECT_THAT(Message("alpha/web@latest"), HasSubstr("alpha (2222bbbb0000)"));
  EXPECT_EQ(Find("2222bbbb/web@latest"), "bbbb2222");
}

TEST_F(TwoHostsTest, AHostWithoutSnapshotsIsToldOfTheOthers) {
  here_ = {.id = "3333cccc000000000000000000000000", .name = "gamma"};
  EXPECT_EQ(Find("latest"), "NOT_FOUND");
  EXPECT_THAT(Message("web@latest"), HasSubstr("write HOST/web@latest"));
}

TEST_F(TwoHostsTest, AClockThatWasAheadDoesNotMakeTheNewest) {
  snapshots_[2].set_point_unix_ns(absl::ToUnixNanos(kNow + absl::Hours(24 * 300)));
  snapshots_.push_back(On(Make("dddd1111", "", "web", absl::ZeroDuration()), kHereId, "alpha"));
  EXPECT_EQ(Find("web@latest"), "dddd1111") << "the last commit, not the largest time";
  EXPECT_EQ(Find("web@1h"), "aaaa1111") << "what lies in the future is not an hour old";
}

}  // namespace
}  // namespace still::store
