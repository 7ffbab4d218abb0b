// What the tests of the controller share.
#pragma once

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fake_guest.h"

namespace still::agent {

class FreezeControllerTest : public ::testing::Test {
 protected:
  FreezeController& controller() { return guest_.controller(); }
  absl::StatusOr<pb::QuiesceResponse> Quiesce(const pb::QuiesceRequest& request) {
    return controller().Quiesce(request, "connection");
  }
  // What must hold whenever nothing is frozen.
  void ExpectThawed() {
    EXPECT_EQ(guest_.frozen_now(), 0);
    EXPECT_EQ(controller().Status().state(), pb::THAWED);
    EXPECT_FALSE(controller().gated());
    EXPECT_FALSE(PathExists(guest_.marker_path()));
    EXPECT_EQ(guest_.timer.deadline(), absl::InfiniteDuration());
    EXPECT_TRUE(guest_.quiet_changes.empty() || !guest_.quiet_changes.back());
  }

  FakeGuest guest_{FourDisks()};
};

}  // namespace still::agent
