#include "guest-agent/freeze_controller.h"

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/freeze_fixture.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

pb::RenewQuiesceRequest RenewOf(const std::string& token, uint32_t lease_ms = 0) {
  pb::RenewQuiesceRequest request;
  request.set_token(token);
  request.set_lease_ms(lease_ms);
  return request;
}

TEST_F(FreezeControllerTest, FreezesNewestFirstAndThawsBackwards) {
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_EQ(frozen->frozen_size(), 4);
  EXPECT_EQ(frozen->frozen(0).mount_point(), "/c");
  EXPECT_EQ(frozen->frozen(0).fs_type(), "ext4");
  EXPECT_EQ(frozen->frozen(0).device(), "254:48");
  ASSERT_EQ(frozen->skipped_size(), 1);
  EXPECT_EQ(frozen->skipped(0).mount_point(), "/proc");
  EXPECT_EQ(guest_.frozen_now(), 4);
  EXPECT_TRUE(controller().gated());
  EXPECT_EQ(guest_.pinned, 1);
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_EQ(thawed->cause(), pb::REQUESTED);
  EXPECT_EQ(thawed->thawed(), 4u);
  EXPECT_EQ(thawed->thawed_early_size(), 0);
  EXPECT_GT(thawed->thawed_at_ns(), 0u);
  // Each file system is thawed until the kernel says that nothing is left.
  EXPECT_THAT(guest_.calls(),
              ElementsAre("sync /c", "sync /b", "sync /a", "sync /",          //
                          "freeze /c", "freeze /b", "freeze /a", "freeze /",  //
                          "thaw /", "thaw /", "thaw /a", "thaw /a", "thaw /b", "thaw /b", "thaw /c", "thaw /c"));
  ExpectThawed();
}

TEST_F(FreezeControllerTest, TheLeaseAndTheMarkerAreInForceBeforeTheFirstFreeze) {
  int checked = 0;
  guest_.before_freeze = [&](const std::string&) {
    EXPECT_TRUE(PathExists(guest_.marker_path()));
    EXPECT_EQ(guest_.timer.deadline(), guest_.clock.Monotonic() + absl::Seconds(5));
    EXPECT_THAT(guest_.quiet_changes, ElementsAre(true));
    ++checked;
  };
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  EXPECT_EQ(checked, 4);
}

TEST_F(FreezeControllerTest, WhicheverFreezeFailsNothingStaysFrozen) {
  const std::vector<std::string> order = {"/c", "/b", "/a", "/"};
  for (size_t k = 0; k < order.size(); ++k) {
    guest_.superblock(order[k]).freeze_error = EIO;
    auto frozen = Quiesce(QuiesceOf(absl::StrCat("t", k)));
    EXPECT_EQ(frozen.status().code(), absl::StatusCode::kDataLoss) << order[k];
    EXPECT_THAT(frozen.status().message(), HasSubstr(absl::StrCat("freeze ", order[k])));
    guest_.superblock(order[k]).freeze_error = 0;
    ExpectThawed();
    EXPECT_EQ(controller().Status().last_thaw_cause(), pb::FREEZE_FAILED);
    EXPECT_EQ(controller().Thaw(ThawOf(absl::StrCat("t", k)))->thawed(), k);
  }
  EXPECT_TRUE(Quiesce(QuiesceOf("after")).ok());
}

TEST_F(FreezeControllerTest, WhateverCannotFreezeIsSkippedAndNotThawedByUs) {
  guest_.superblock("/a").freeze_error = EOPNOTSUPP;
  guest_.superblock("/b").freezes = 1;  // Somebody else's.
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok());
  EXPECT_EQ(frozen->frozen_size(), 2);
  std::map<std::string, pb::SkippedMount::Reason> reasons;
  for (const auto& skipped : frozen->skipped()) reasons[skipped.mount_point()] = skipped.reason();
  EXPECT_EQ(reasons["/a"], pb::SkippedMount::NOT_SUPPORTED);
  EXPECT_EQ(reasons["/b"], pb::SkippedMount::ALREADY_FROZEN);
  // Nor by a successor that finds the marker.
  auto marked = FreezeMarker(guest_.marker_path()).Read();
  ASSERT_TRUE(marked.ok());
  EXPECT_EQ(marked->mounts.size(), 2u);
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->thawed(), 2u);
  EXPECT_EQ(guest_.superblock("/b").freezes, 1);
  // The operator's way out takes everything.
  pb::ThawRequest all;
  all.set_foreign_too(true);
  EXPECT_EQ(controller().Thaw(all)->cause(), pb::REQUESTED);
  EXPECT_EQ(guest_.superblock("/b").freezes, 0);
}

TEST_F(FreezeControllerTest, NothingFreezableIsSuccessWithZero) {
  FakeGuest guest("90000001 0 0:1 / / rw - tmpfs tmpfs rw\n");
  auto frozen = guest.controller().Quiesce(QuiesceOf("t"), "c");
  ASSERT_TRUE(frozen.ok());
  EXPECT_EQ(frozen->frozen_size(), 0);
  EXPECT_EQ(frozen->skipped(0).reason(), pb::SkippedMount::NO_BLOCK_DEVICE);
  EXPECT_EQ(guest.controller().Status().state(), pb::FROZEN);
  EXPECT_EQ(guest.controller().Thaw(ThawOf("t"))->thawed(), 0u);
}

TEST_F(FreezeControllerTest, WithoutPresyncNothingIsSynced) {
  pb::QuiesceRequest request = QuiesceOf("t");
  request.set_skip_presync(true);
  ASSERT_TRUE(Quiesce(request).ok());
  EXPECT_THAT(guest_.calls(), ElementsAre("freeze /c", "freeze /b", "freeze /a", "freeze /"));
}

TEST_F(FreezeControllerTest, BadRequestsFreezeNothing) {
  for (const pb::QuiesceRequest& request :
       {QuiesceOf(""), QuiesceOf(std::string(65, 'x')), QuiesceOf("t", 99), QuiesceOf("t", 600001)}) {
    EXPECT_EQ(Quiesce(request).status().code(), absl::StatusCode::kInvalidArgument);
  }
  pb::QuiesceRequest unknown_mount = QuiesceOf("u");
  unknown_mount.add_mounts("/nowhere");
  EXPECT_EQ(Quiesce(unknown_mount).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(guest_.calls(), IsEmpty());
  ExpectThawed();
}

TEST_F(FreezeControllerTest, TheSameTokenGetsTheFirstAnswerAgainAndAnotherIsRefused) {
  auto first = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(first.ok());
  guest_.Advance(absl::Seconds(1));
  auto again = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->SerializeAsString(), first->SerializeAsString());
  EXPECT_EQ(Quiesce(QuiesceOf("other")).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(controller().Thaw(ThawOf("other")).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(guest_.frozen_now(), 4);
}

TEST_F(FreezeControllerTest, ThawIsIdempotentAndATokenIsUsedOnce) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  auto first = controller().Thaw(ThawOf("t"));
  guest_.Advance(absl::Seconds(3));
  auto second = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->SerializeAsString(), first->SerializeAsString());
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kFailedPrecondition);
  ExpectThawed();
}

TEST_F(FreezeControllerTest, AThawThatOvertakesItsQuiesceWins) {
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->cause(), pb::NOT_FROZEN);
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kFailedPrecondition);
  ExpectThawed();
}

TEST_F(FreezeControllerTest, AnEmptyTokenThawsWhoeverAsked) {
  EXPECT_EQ(controller().Thaw({})->cause(), pb::NOT_FROZEN);
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  EXPECT_EQ(controller().Thaw({})->thawed(), 4u);
  EXPECT_EQ(controller().Thaw({})->cause(), pb::REQUESTED);  // The last one's.
  ExpectThawed();
}

TEST_F(FreezeControllerTest, TheLeaseThawsByItselfAndItsTimeIsTold) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  EXPECT_EQ(controller().Status().remaining_ms(), 5000u);
  guest_.Advance(absl::Milliseconds(4999));
  EXPECT_EQ(guest_.frozen_now(), 4);
  guest_.Advance(absl::Milliseconds(1));
  ExpectThawed();
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->cause(), pb::LEASE_EXPIRED);
  EXPECT_EQ(thawed->thawed(), 4u);
  auto renewed = controller().Renew(RenewOf("t"));
  EXPECT_EQ(renewed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(renewed.status().message(), HasSubstr("LEASE_EXPIRED"));
}

TEST_F(FreezeControllerTest, RenewalsMoveTheDeadline) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.Advance(absl::Seconds(4));
  EXPECT_EQ(controller().Renew(RenewOf("t"))->remaining_ms(), 5000u);
  guest_.Advance(absl::Seconds(4));
  EXPECT_EQ(guest_.frozen_now(), 4);
  EXPECT_EQ(controller().Renew(RenewOf("t", 2000))->remaining_ms(), 2000u);
  guest_.Advance(absl::Seconds(2));
  ExpectThawed();
}

TEST_F(FreezeControllerTest, ARenewalThatComesTooLateIsRefusedThoughTheTimerIsLate) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.clock.Advance(absl::Seconds(5));  // The timer's thread has not run yet.
  EXPECT_EQ(controller().Renew(RenewOf("t")).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(controller().Renew(RenewOf("other")).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(controller().Renew(RenewOf("t", 1)).status().code(), absl::StatusCode::kInvalidArgument);
  guest_.Advance(absl::ZeroDuration());
  ExpectThawed();
}

TEST_F(FreezeControllerTest, ATimerThatFiresDuringARenewalThawsNothing) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.clock.Advance(absl::Seconds(4));
  ASSERT_TRUE(controller().Renew(RenewOf("t")).ok());
  // The callback of the old deadline, already on its way.
  guest_.timer.Arm(absl::ZeroDuration());
  guest_.timer.Tick(guest_.clock.Monotonic());
  EXPECT_EQ(guest_.frozen_now(), 4);
  guest_.Advance(absl::Seconds(5));
  ExpectThawed();
}

// A FIFREEZE that hangs in the kernel cannot be interrupted: what was frozen before it must not wait for it.
class StuckFreezeTest : public FreezeControllerTest {
 protected:
  // Begins a freeze that sticks in its third FIFREEZE, runs `end_it`, and checks that the first two are thawed at once
  // and the rest when the kernel lets go.
  void Check(pb::ThawCause cause, const std::function<void()>& end_it) {
    int count = 0;
    guest_.before_freeze = [&](const std::string&) {
      if (++count == 3) guest_.BlockNextFreeze();
    };
    absl::StatusOr<pb::QuiesceResponse> result;
    std::thread caller([&] { result = Quiesce(QuiesceOf("t")); });
    guest_.WaitUntilFreezeBlocks();
    end_it();
    EXPECT_TRUE(Eventually([&] { return guest_.calls().back() == "thaw /c"; }));
    EXPECT_EQ(controller().Status().state(), pb::THAWING);
    EXPECT_TRUE(PathExists(guest_.marker_path()));
    EXPECT_EQ(Quiesce(QuiesceOf("next")).status().code(), absl::StatusCode::kFailedPrecondition);
    guest_.ReleaseFreeze();
    caller.join();
    EXPECT_EQ(result.status().code(), absl::StatusCode::kAborted) << result.status();
    ExpectThawed();
    auto thawed = controller().Thaw(ThawOf("t"));
    ASSERT_TRUE(thawed.ok());
    EXPECT_EQ(thawed->cause(), cause);
    EXPECT_EQ(thawed->thawed(), 3u);
  }
};

TEST_F(StuckFreezeTest, TheLeaseExpires) {
  Check(pb::LEASE_EXPIRED, [this] { guest_.Advance(absl::Seconds(5)); });
}

TEST_F(StuckFreezeTest, TheCallIsCancelled) {
  Check(pb::CLIENT_LOST, [this] { controller().Abandon("t"); });
}

TEST_F(StuckFreezeTest, TheConnectionIsLost) {
  Check(pb::CLIENT_LOST, [this] { controller().ConnectionLost("connection"); });
}

TEST_F(StuckFreezeTest, AThawIsAskedForAndWaitsForTheEnd) {
  std::thread thawer;
  absl::StatusOr<pb::ThawResponse> thawed;
  Check(pb::REQUESTED, [&] { thawer = std::thread([&] { thawed = controller().Thaw(ThawOf("t")); }); });
  thawer.join();
  ASSERT_TRUE(thawed.ok()) << thawed.status();
  EXPECT_EQ(thawed->thawed(), 3u);
}

TEST_F(StuckFreezeTest, TheAgentIsToldToStop) {
  std::thread stopper;
  Check(pb::AGENT_STOPPED, [&] { stopper = std::thread([&] { controller().ThawBeforeExit(); }); });
  stopper.join();
}

TEST_F(FreezeControllerTest, WhicheverFreezeTheLeaseRunsOutInNothingStaysFrozen) {
  for (int k = 0; k < 4; ++k) {
    int count = 0;
    guest_.before_freeze = [&](const std::string&) {
      if (count++ == k) guest_.Advance(absl::Seconds(5));
    };
    EXPECT_EQ(Quiesce(QuiesceOf(absl::StrCat("t", k))).status().code(), absl::StatusCode::kAborted) << k;
    ExpectThawed();
    EXPECT_EQ(controller().Status().last_thaw_cause(), pb::LEASE_EXPIRED);
  }
}

TEST_F(FreezeControllerTest, AFileSystemThatDoesNotThawIsTriedAgainForEver) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.superblock("/b").thaw_errors = {EIO, EIO};
  guest_.Advance(absl::Seconds(5));
  EXPECT_EQ(guest_.frozen_now(), 1);
  EXPECT_EQ(controller().Status().state(), pb::THAWING);
  EXPECT_EQ(controller().Status().frozen(0).mount_point(), "/b");
  EXPECT_TRUE(PathExists(guest_.marker_path()));
  guest_.Advance(absl::Seconds(1));
  EXPECT_EQ(guest_.frozen_now(), 1);
  guest_.Advance(absl::Seconds(1));
  ExpectThawed();
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->thawed(), 4u);
}

TEST_F(FreezeControllerTest, AFreezeThatFailsAndDoesNotThawIsNotForgotten) {
  guest_.superblock("/a").freeze_error = EIO;
  guest_.superblock("/c").thaw_errors = {EIO};
  std::thread retry([&] {
    guest_.WaitForState(pb::THAWING);
    EXPECT_TRUE(Eventually([&] {
      guest_.Advance(absl::Seconds(1));
      return controller().Status().state() == pb::THAWED;
    }));
  });
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kDataLoss);
  retry.join();
  ExpectThawed();
}

TEST_F(FreezeControllerTest, SomebodyElsesThawIsReported) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.superblock("/a").freezes = 0;
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->thawed(), 3u);
  EXPECT_THAT(thawed->thawed_early(), ElementsAre("/a"));
}

TEST_F(FreezeControllerTest, AFreezeThatHoldsTwiceIsThawedTwiceAndCountedOnce) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.superblock("/a").freezes = 2;  // Device-mapper's as well.
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->thawed(), 4u);
  ExpectThawed();
}

TEST_F(FreezeControllerTest, LosingAConnectionEndsOnlyAnUnconfirmedFreezeOfItsOwn) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  controller().ConnectionLost("another");
  EXPECT_EQ(guest_.frozen_now(), 4);
  controller().ConnectionLost("connection");
  ExpectThawed();
  EXPECT_EQ(controller().Status().last_thaw_cause(), pb::CLIENT_LOST);
  ASSERT_TRUE(Quiesce(QuiesceOf("u")).ok());
  ASSERT_TRUE(controller().Renew(RenewOf("u")).ok());
  controller().ConnectionLost("connection");
  EXPECT_EQ(guest_.frozen_now(), 4);
}

TEST_F(FreezeControllerTest, AThawTellsWhoAskedAndWhen) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  auto renewed = controller().Renew(RenewOf("t"));
  ASSERT_TRUE(renewed.ok());
  EXPECT_EQ(renewed->boottime_ns(), absl::ToInt64Nanoseconds(guest_.clock.Monotonic()));
  guest_.Advance(absl::Seconds(1));
  pb::ThawRequest operators;
  operators.set_requester("still thaw\n");
  ASSERT_TRUE(controller().Thaw(operators).ok());
  guest_.Advance(absl::Seconds(1));
  // The capture, which comes later, learns that it was not the one.
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->cause(), pb::REQUESTED);
  EXPECT_FALSE(thawed->by_token());
  EXPECT_EQ(thawed->requester(), "still thaw?");
  EXPECT_EQ(thawed->thaw_began_ns(), renewed->boottime_ns() + 1'000'000'000u);
  ASSERT_TRUE(Quiesce(QuiesceOf("u")).ok());
  EXPECT_TRUE(controller().Thaw(ThawOf("u"))->by_token());
}

TEST_F(FreezeControllerTest, AWriteBackThatDoesNotEndGivesUpAndIsNotAskedAgain) {
  absl::Notification go_on;
  guest_.on_sync = [&](const std::string& mount_point) {
    if (mount_point == "/b") go_on.WaitForNotification();
  };
  pb::QuiesceRequest request = QuiesceOf("t");
  request.set_presync_timeout_ms(50);
  auto frozen = Quiesce(request);
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(frozen.status().message(), HasSubstr("/b"));
  ExpectThawed();
  EXPECT_EQ(Quiesce(QuiesceOf("u")).status().code(), absl::StatusCode::kDeadlineExceeded);
  go_on.Notify();
  int attempt = 0;
  EXPECT_TRUE(Eventually([&] { return Quiesce(QuiesceOf(absl::StrCat("v", ++attempt))).ok(); }));
}

TEST_F(FreezeControllerTest, TheDestructorThaws) {
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  guest_.DestroyController();
  EXPECT_EQ(guest_.frozen_now(), 0);
}

// Many threads at once, with the machine's own clock: whatever they do, nothing stays frozen. (Run it under tsan.)
TEST_F(FreezeControllerTest, WhoeverCallsWhatWheneverNothingStaysFrozen) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 200; ++i) {
        std::string token = absl::StrCat(t, "-", i);
        if (Quiesce(QuiesceOf(token)).ok() && i % 3 == 0) (void)controller().Renew(RenewOf(token));
        if (i % 5 == 0) guest_.Advance(absl::Seconds(1));
        if (i % 7 == 0) controller().ConnectionLost("connection");
        if (i % 2 == 0) controller().Abandon(token);
        EXPECT_TRUE(controller().Thaw(ThawOf(i % 4 == 0 ? "" : token)).ok() || i % 4 != 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  (void)controller().Thaw({});
  ExpectThawed();
}

}  // namespace
}  // namespace still::agent
