// The freeze as the host holds it, over a real connection.
#include "session/guest/frozen_guest.h"

#include <atomic>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_agent.h"

namespace still::session {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A guest that is frozen, and one that is paused after it, waits for each round trip.
TEST(FrozenGuest, RecheckAndThawTakeOneRoundTripEach) {
  still::testing::FakeAgent agent;
  GuestLink link(agent.MakeVsock(), {.session = "web"});
  absl::StatusOr<FrozenGuest> frozen = FrozenGuest::Freeze(link, {});
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  const std::vector<std::string> before = agent.calls();
  absl::StatusOr<absl::Duration> rechecked = frozen->Recheck(absl::Seconds(1));
  ASSERT_TRUE(rechecked.ok()) << rechecked.status();
  EXPECT_EQ(*rechecked, absl::Seconds(77));
  ASSERT_TRUE(frozen->Thaw(absl::Seconds(20)).ok());
  std::vector<std::string> after = agent.calls();
  after.erase(after.begin(), after.begin() + static_cast<long>(before.size()));
  EXPECT_THAT(after, ElementsAre("RenewQuiesce", "Thaw"));
}

TEST(FrozenGuest, AThawWhoseConnectionIsLostIsAskedForAgainByTheSameToken) {
  still::testing::FakeAgent agent;
  absl::Mutex mutex;
  std::vector<guestpb::ThawRequest> asked;
  agent.thaw = [&](const guestpb::ThawRequest& request, guestpb::ThawResponse* response) {
    absl::MutexLock lock(&mutex);
    asked.push_back(request);
    response->set_cause(guestpb::REQUESTED);
    return asked.size() == 1 ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset") : grpc::Status::OK;
  };
  GuestLink link(agent.MakeVsock(2), {.session = "web"});
  absl::StatusOr<FrozenGuest> frozen = FrozenGuest::Freeze(link, {});
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  absl::StatusOr<guestpb::ThawResponse> thawed = frozen->Thaw(absl::Seconds(20));
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  absl::MutexLock lock(&mutex);
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_FALSE(asked[0].token().empty());
  EXPECT_EQ(asked[0].token(), asked[1].token());
  EXPECT_EQ(asked[0].requester(), "capture");
}

// Its guest's memory is being saved, so that every write of it waits.
TEST(FrozenGuest, AnAgentThatIsOnlySlowIsAskedAgainOverItsConnection) {
  still::testing::FakeAgent agent;
  std::atomic<int> asked = 0;
  agent.thaw = [&](const guestpb::ThawRequest&, guestpb::ThawResponse* response) {
    response->set_cause(guestpb::REQUESTED);
    return ++asked == 1 ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "slow") : grpc::Status::OK;
  };
  GuestLink link(agent.MakeVsock(), {.session = "web"});
  absl::StatusOr<FrozenGuest> frozen = FrozenGuest::Freeze(link, {});
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  agent.hangs = true;
  const absl::Status silent = link.Client(absl::Milliseconds(200)).status();
  EXPECT_THAT(std::string(silent.message()), HasSubstr("it is connected"));
  absl::StatusOr<guestpb::ThawResponse> thawed = frozen->Thaw(absl::Seconds(30));
  agent.hangs = false;
  EXPECT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_EQ(asked, 2);
}

// A hypervisor that dies in the window: there is nobody to thaw, now or later.
TEST(FrozenGuest, ASessionThatHasEndedIsNotAskedAgain) {
  still::testing::FakeAgent agent;
  std::atomic<int> asked = 0;
  agent.thaw = [&](const guestpb::ThawRequest&, guestpb::ThawResponse*) {
    ++asked;
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset");
  };
  GuestLink link(agent.MakeVsock(), {.session = "web"});
  {
    absl::StatusOr<FrozenGuest> frozen = FrozenGuest::Freeze(link, {});
    ASSERT_TRUE(frozen.ok()) << frozen.status();
    link.Shutdown();
    EXPECT_EQ(frozen->Thaw(absl::Hours(10)).status(), absl::UnavailableError("the session has ended"));
  }
  // Whether the one request still arrives is up to the connection, which ends at the same time.
  EXPECT_LE(asked, 1) << "the guard asks no more";
}

}  // namespace
}  // namespace still::session
