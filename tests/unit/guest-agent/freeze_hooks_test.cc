// When the controller runs hooks, and what becomes of their failures.
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

class HookOrderTest : public FreezeControllerTest {
 protected:
  HookOrderTest() { guest_.hooks.names = {"h1", "h2", "h3"}; }
  // Thaw hooks run on after the thaw: what has become of them.
  pb::QuiesceStatusResponse AfterThawHooks() {
    pb::QuiesceStatusResponse status;
    EXPECT_TRUE(Eventually([&] { return (status = controller().Status()).thaw_hooks_pending() == 0; }));
    return status;
  }
};

TEST_F(HookOrderTest, HooksRunBeforeTheFreezeAndBackwardsAfterTheThaw) {
  guest_.hooks.behaviour = [&](const std::string&, absl::string_view verb, const auto&) {
    EXPECT_EQ(guest_.frozen_now(), 0) << verb;
    return 0;
  };
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok());
  EXPECT_EQ(frozen->hooks_size(), 3);
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->hooks_size(), 0);
  EXPECT_EQ(thawed->hooks_pending(), 3u);
  pb::QuiesceStatusResponse after = AfterThawHooks();
  ASSERT_EQ(after.thaw_hooks_size(), 3);
  EXPECT_EQ(after.thaw_hooks(0).path(), "h3");
  EXPECT_EQ(after.last_thawed_token(), "t");
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "freeze h3", "thaw h3", "thaw h2", "thaw h1"));
}

TEST_F(HookOrderTest, WhicheverHookFailsNothingIsFrozenAndEveryStartedHookIsThawed) {
  for (int k = 1; k <= 3; ++k) {
    guest_.hooks.ran.clear();
    std::string failing = absl::StrCat("h", k);
    guest_.hooks.behaviour = [&](const std::string& path, absl::string_view verb, const auto&) {
      return verb == "freeze" && path == failing ? 1 : 0;
    };
    auto frozen = Quiesce(QuiesceOf(absl::StrCat("t", k)));
    EXPECT_EQ(frozen.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(frozen.status().message(), HasSubstr(failing));
    AfterThawHooks();
    std::vector<std::string> expected;
    for (int i = 1; i <= k; ++i) expected.push_back(absl::StrCat("freeze h", i));
    for (int i = k; i >= 1; --i) expected.push_back(absl::StrCat("thaw h", i));
    EXPECT_EQ(guest_.hooks.ran, expected);
    ExpectThawed();
  }
  for (const std::string& call : guest_.calls()) EXPECT_THAT(call, Not(HasSubstr("freeze")));
}

TEST_F(HookOrderTest, AFailureIsAWarningWhereTheCallerSaysSo) {
  guest_.hooks.behaviour = [](const auto& path, absl::string_view, const auto&) { return path == "h2" ? 1 : 0; };
  pb::QuiesceRequest request = QuiesceOf("t");
  request.set_hook_policy(pb::HOOK_WARN);
  auto frozen = Quiesce(request);
  ASSERT_TRUE(frozen.ok());
  EXPECT_EQ(frozen->hooks(1).exit_code(), 1);
  EXPECT_EQ(guest_.frozen_now(), 4);
  // A thaw hook that fails stops nothing either.
  ASSERT_TRUE(controller().Thaw(ThawOf("t")).ok());
  EXPECT_EQ(AfterThawHooks().thaw_hooks(1).exit_code(), 1);
  ExpectThawed();
}

TEST_F(HookOrderTest, SkippedHooksRunNeitherWay) {
  pb::QuiesceRequest request = QuiesceOf("t");
  request.set_hook_policy(pb::HOOK_SKIP);
  ASSERT_TRUE(Quiesce(request).ok());
  ASSERT_TRUE(controller().Thaw(ThawOf("t")).ok());
  EXPECT_THAT(guest_.hooks.ran, IsEmpty());
}

TEST_F(HookOrderTest, AFailedFreezeThawsTheHooksToo) {
  guest_.superblock("/").freeze_error = EIO;
  EXPECT_FALSE(Quiesce(QuiesceOf("t")).ok());
  AfterThawHooks();
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "freeze h3", "thaw h3", "thaw h2", "thaw h1"));
}

TEST_F(HookOrderTest, AHookIsToldThatTheFreezeWasGivenUp) {
  guest_.hooks.behaviour = [&](const std::string& path, absl::string_view verb,
                               const std::function<bool()>& cancelled) {
    if (path != "h2" || verb != "freeze") return 0;
    EXPECT_FALSE(cancelled());
    controller().Abandon("t");
    EXPECT_TRUE(cancelled());
    return -1;
  };
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kAborted);
  AfterThawHooks();
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "thaw h2", "thaw h1"));
  EXPECT_EQ(controller().Status().last_thaw_cause(), pb::CLIENT_LOST);
  ExpectThawed();
}

TEST_F(HookOrderTest, HooksDoNotUseUpTheLease) {
  guest_.hooks.behaviour = [&](const auto&, absl::string_view, const auto&) {
    guest_.Advance(absl::Seconds(9));  // Longer than the lease.
    return 0;
  };
  auto frozen = Quiesce(QuiesceOf("t", 5000));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_EQ(frozen->hooks_us(), 27'000'000u);
  EXPECT_EQ(controller().Status().remaining_ms(), 5000u);
  guest_.Advance(absl::Seconds(5));
  EXPECT_EQ(guest_.frozen_now(), 0);
}

TEST_F(HookOrderTest, HooksTogetherHaveALimitOfTheirOwn) {
  guest_.hooks.behaviour = [&](const auto&, absl::string_view verb, const auto&) {
    if (verb == "freeze") guest_.Advance(absl::Seconds(1));
    return 0;
  };
  pb::QuiesceRequest request = QuiesceOf("t");
  request.set_hooks_timeout_ms(1500);
  auto frozen = Quiesce(request);
  EXPECT_EQ(frozen.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(frozen.status().message(), HasSubstr("h3 failed: not started"));
  AfterThawHooks();
  ExpectThawed();
}

TEST_F(HookOrderTest, AThawDoesNotWaitForItsHooksButTheNextFreezeDoes) {
  absl::Notification go_on;
  guest_.hooks.behaviour = [&](const std::string& path, absl::string_view verb, const auto&) {
    if (path == "h3" && verb == "thaw") go_on.WaitForNotification();
    return 0;
  };
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  auto thawed = controller().Thaw(ThawOf("t"));
  ASSERT_TRUE(thawed.ok());
  EXPECT_EQ(thawed->hooks_pending(), 3u);
  EXPECT_FALSE(controller().gated());
  EXPECT_EQ(controller().Status().thaw_hooks_pending(), 3u);
  pb::QuiesceRequest impatient = QuiesceOf("u");
  impatient.set_hooks_timeout_ms(30);
  EXPECT_THAT(Quiesce(impatient).status().message(), HasSubstr("thaw hooks of the freeze before still run"));
  go_on.Notify();
  EXPECT_TRUE(Quiesce(QuiesceOf("v")).ok());
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "freeze h3", "thaw h3", "thaw h2", "thaw h1",
                                            "freeze h1", "freeze h2", "freeze h3"));
  ASSERT_TRUE(controller().Thaw(ThawOf("v")).ok());
  AfterThawHooks();  // They use `go_on`.
}

TEST_F(HookOrderTest, TheMountTableIsReadAgainAfterTheHooks) {
  int surveys_at_hook = 0;
  guest_.hooks.behaviour = [&](const auto&, absl::string_view, const auto&) {
    surveys_at_hook = guest_.surveys;
    return 0;
  };
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  EXPECT_EQ(surveys_at_hook, 1);
  EXPECT_EQ(guest_.surveys, 3);  // And for the disks, while frozen.
  ASSERT_TRUE(controller().Thaw(ThawOf("t")).ok());
  AfterThawHooks();  // They use what is above.
}

}  // namespace
}  // namespace still::agent
