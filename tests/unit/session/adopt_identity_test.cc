#include "session/guest/adopt_identity.h"

#include <algorithm>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_agent.h"

namespace still::session {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

void AddStep(guestpb::AdoptIdentityResponse& response, const std::string& name, guestpb::IdentityStep::Outcome outcome,
             const std::string& detail = "") {
  guestpb::IdentityStep& step = *response.add_steps();
  step.set_name(name);
  step.set_outcome(outcome);
  step.set_detail(detail);
}

TEST(AdoptIdentity, OnlyAddressesThatCouldNotBeChangedKeepTheNetworkDown) {
  guestpb::AdoptIdentityResponse response;
  EXPECT_TRUE(MayUseNetwork(response));
  AddStep(response, "ssh-host-keys", guestpb::IdentityStep::FAILED, "no ssh-keygen");
  AddStep(response, "network", guestpb::IdentityStep::SKIPPED);
  EXPECT_TRUE(MayUseNetwork(response));
  EXPECT_THAT(FailedSteps(response), ElementsAre("identity: ssh-host-keys failed: no ssh-keygen"));
  AddStep(response, "network", guestpb::IdentityStep::FAILED);
  EXPECT_FALSE(MayUseNetwork(response));
}

class AskedTest : public ::testing::Test {
 protected:
  absl::StatusOr<guestpb::AdoptIdentityResponse> Adopt(int connections = 1,
                                                       AdoptLimits limits = {.timeout = absl::Seconds(60),
                                                                             .silence = absl::Seconds(60)}) {
    GuestLink link(agent_.MakeVsock(connections), {.session = "web", .restore_id = "r"});
    sessionpb::NewIdentity identity;
    identity.set_restore_id("r");
    identity.set_hostname("web");
    return AdoptIdentity(link, identity, limits);
  }
  // Answers the calls in this order.
  void Answer(std::vector<grpc::Status> answers) {
    agent_.adopt = [this, answers](const guestpb::AdoptIdentityRequest& request, guestpb::AdoptIdentityResponse*) {
      asked_.push_back(request);
      return answers[std::min(asked_.size(), answers.size()) - 1];
    };
  }

  // The call is answered after `time`, or when the test ends.
  void AnswerAfter(absl::Duration time) {
    agent_.adopt = [this, time](const guestpb::AdoptIdentityRequest&, guestpb::AdoptIdentityResponse*) {
      agent_.hangs = hangs_;
      over_.WaitForNotificationWithTimeout(time);
      return grpc::Status::OK;
    };
  }
  void TearDown() override { over_.Notify(); }

  bool hangs_ = false;
  absl::Notification over_;
  std::vector<guestpb::AdoptIdentityRequest> asked_;
  still::testing::FakeAgent agent_;
};

TEST_F(AskedTest, TheGuestGetsEntropyTimeAndItsNames) {
  Answer({grpc::Status::OK});
  const absl::Time before = absl::Now();
  ASSERT_TRUE(Adopt().ok());
  ASSERT_THAT(asked_, SizeIs(1));
  EXPECT_EQ(asked_[0].restore_id(), "r");
  EXPECT_EQ(asked_[0].hostname(), "web");
  EXPECT_GE(asked_[0].entropy().size(), 32u);
  EXPECT_GE(absl::FromUnixNanos(asked_[0].wall_ns()), before);
}

// A connection of the first instant may be reset; what was sent on it must not be what is sent again.
TEST_F(AskedTest, ALostConnectionIsTriedAgainWithFreshEntropy) {
  Answer({grpc::Status(grpc::StatusCode::UNAVAILABLE, "reset"), grpc::Status::OK});
  ASSERT_TRUE(Adopt(/*connections=*/2).ok());
  ASSERT_THAT(asked_, SizeIs(2));
  EXPECT_NE(asked_[0].entropy(), asked_[1].entropy());
  EXPECT_EQ(asked_[0].restore_id(), asked_[1].restore_id());
}

TEST_F(AskedTest, AGuestThatIsNotReseededIsAnError) {
  Answer({grpc::Status(grpc::StatusCode::INTERNAL, "the random generator was not reseeded"), grpc::Status::OK});
  EXPECT_EQ(Adopt().status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(asked_, SizeIs(1));
}

TEST_F(AskedTest, AnAgentThatCannotDoItIsAnError) {
  agent_.features.clear();
  Answer({grpc::Status::OK});
  absl::Status status = Adopt().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("version 9.9"));
  EXPECT_THAT(asked_, IsEmpty());
}

TEST_F(AskedTest, AGuestThatHangsIsGivenUpLongBeforeTheLimit) {
  hangs_ = true;
  AnswerAfter(absl::InfiniteDuration());
  absl::Status status =
      Adopt(/*connections=*/1, {.timeout = absl::Hours(1), .silence = absl::Milliseconds(1500)}).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("no sign of life for 1.5s"));
}

TEST_F(AskedTest, AGuestThatIsSlowButAliveIsWaitedFor) {
  AnswerAfter(absl::Seconds(4));
  absl::Status status =
      Adopt(/*connections=*/1, {.timeout = absl::Hours(1), .silence = absl::Milliseconds(1500)}).status();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(AskedTest, AGuestThatLivesButNeverEndsMeetsTheLimit) {
  AnswerAfter(absl::InfiniteDuration());
  absl::Status status =
      Adopt(/*connections=*/1, {.timeout = absl::Milliseconds(1500), .silence = absl::Hours(1)}).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("no identity of its own within 1.5s"));
}

TEST(AdoptIdentity, WhatAGuestSaysIsBoundedAndEscaped) {
  guestpb::AdoptIdentityResponse response;
  for (int i = 0; i < 1000; ++i) AddStep(response, "\x1b[2J", guestpb::IdentityStep::FAILED, std::string(100000, 'x'));
  std::vector<std::string> told = FailedSteps(response);
  EXPECT_THAT(told, SizeIs(16));
  EXPECT_LT(told[0].size(), 1000u);
  EXPECT_EQ(told[0].find('\x1b'), std::string::npos);
  EXPECT_THAT(FailedSteps({}), IsEmpty());
}

}  // namespace
}  // namespace still::session
