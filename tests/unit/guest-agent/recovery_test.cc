// What a dead agent leaves frozen.
#include "guest-agent/recovery.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fake_guest.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;

class RecoveryTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::optional<RecoveredFreeze>> Recover() {
    return ThawAfterAgentDeath(guest_, marker_, guest_.hooks, guest_.clock, absl::Seconds(1));
  }
  FakeGuest guest_{FourDisks()};
  FreezeMarker marker_{guest_.marker_path()};
};

TEST_F(RecoveryTest, WithoutAMarkerNothingIsTouched) {
  guest_.superblock("/a").freezes = 1;
  auto recovered = Recover();
  ASSERT_TRUE(recovered.ok());
  EXPECT_FALSE(recovered->has_value());
  EXPECT_EQ(guest_.superblock("/a").freezes, 1);
}

TEST_F(RecoveryTest, ThawsWhatTheMarkerNamesAndNothingElse) {
  guest_.superblock("/a").freezes = 1;
  guest_.superblock("/c").freezes = 1;
  guest_.superblock("/b").freezes = 1;  // Somebody else's.
  guest_.hooks.names = {"h1", "h2"};
  ASSERT_TRUE(marker_.Write({"token", {{1, "/c", true}, {2, "/a", true}, {3, "/", true}}}).ok());
  auto recovered = Recover();
  ASSERT_TRUE(recovered.ok());
  ASSERT_TRUE(recovered->has_value());
  EXPECT_EQ((*recovered)->token, "token");
  EXPECT_EQ((*recovered)->thaw.cause(), pb::AGENT_RESTARTED);
  EXPECT_EQ((*recovered)->thaw.thawed(), 2u);
  EXPECT_EQ(guest_.superblock("/b").freezes, 1);
  EXPECT_FALSE(marker_.Exists());
  EXPECT_THAT(guest_.calls(), ElementsAre("thaw /", "thaw /a", "thaw /a", "thaw /c", "thaw /c"));
  EXPECT_THAT(guest_.hooks.ran, ElementsAre("thaw h2", "thaw h1"));
  // The next agent knows the token.
  guest_.controller().Recovered(**recovered);
  pb::ThawRequest request;
  request.set_token("token");
  EXPECT_EQ(guest_.controller().Thaw(request)->cause(), pb::AGENT_RESTARTED);
  EXPECT_EQ(guest_.controller().Status().last_thaw_cause(), pb::AGENT_RESTARTED);
}

TEST_F(RecoveryTest, ADamagedMarkerMeansEverything) {
  for (const char* name : {"/a", "/b", "/c", "/"}) guest_.superblock(name).freezes = 1;
  ASSERT_TRUE(WriteFileAtomically(marker_.path(), "?").ok());
  auto recovered = Recover();
  ASSERT_TRUE(recovered.ok());
  EXPECT_EQ((*recovered)->thaw.thawed(), 4u);
  EXPECT_EQ(guest_.frozen_now(), 0);
}

// The namespace that it was frozen through is gone; another still has it mounted.
TEST_F(RecoveryTest, AMountThatIsGoneMeansEverything) {
  guest_.superblock("/a").freezes = 1;
  guest_.superblock("/c").freezes = 1;
  guest_.unreachable = {77};
  ASSERT_TRUE(marker_.Write({"token", {{1, "/c", true}, {77, "/gone/a", true}}}).ok());
  auto recovered = Recover();
  ASSERT_TRUE(recovered.ok()) << recovered.status();
  EXPECT_EQ((*recovered)->thaw.thawed(), 2u);
  EXPECT_EQ(guest_.frozen_now(), 0);
  EXPECT_FALSE(marker_.Exists());
}

TEST_F(RecoveryTest, TheMarkerStaysUntilEverythingIsThawed) {
  guest_.superblock("/a").freezes = 1;
  guest_.superblock("/a").thaw_errors = {EIO};
  ASSERT_TRUE(marker_.Write({"token", {{2, "/a", true}}}).ok());
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(marker_.Exists());
  EXPECT_TRUE(Recover().ok());
  EXPECT_FALSE(marker_.Exists());
}

}  // namespace
}  // namespace still::agent
