// When the controller runs hooks, and what becomes of their failures.
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
  EXPECT_EQ(thawed->hooks_size(), 3);
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
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->hooks_size(), 3);
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
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "freeze h3", "thaw h3", "thaw h2", "thaw h1"));
}

TEST_F(HookOrderTest, TheLeaseRunsOutDuringAHookThatIsThenToldSo) {
  guest_.hooks.behaviour = [&](const std::string& path, absl::string_view verb,
                               const std::function<bool()>& cancelled) {
    if (path != "h2" || verb != "freeze") return 0;
    EXPECT_FALSE(cancelled());
    guest_.Advance(absl::Seconds(5));
    EXPECT_TRUE(cancelled());
    return -1;
  };
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kAborted);
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("freeze h1", "freeze h2", "thaw h2", "thaw h1"));
  EXPECT_EQ(controller().Status().last_thaw_cause(), pb::LEASE_EXPIRED);
  ExpectThawed();
}

TEST_F(HookOrderTest, TheMountTableIsReadAgainAfterTheHooks) {
  int surveys_at_hook = 0;
  guest_.hooks.behaviour = [&](const auto&, absl::string_view, const auto&) {
    surveys_at_hook = guest_.surveys;
    return 0;
  };
  ASSERT_TRUE(Quiesce(QuiesceOf("t")).ok());
  EXPECT_EQ(surveys_at_hook, 1);
  EXPECT_EQ(guest_.surveys, 2);
  ASSERT_TRUE(controller().Thaw(ThawOf("t")).ok());  // While what the hooks write to still lives.
}

}  // namespace
}  // namespace still::agent
