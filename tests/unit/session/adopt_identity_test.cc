#include "session/guest/adopt_identity.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::ElementsAre;
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
