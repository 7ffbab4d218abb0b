#include "session/hypervisor/qemu/qemu_run_state.h"

#include <gmock/gmock.h>

#include <atomic>
#include <memory>

#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLimit = absl::Seconds(60);

class QemuRunStateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto qmp = QmpClient::Connect(server_.TakeClient(), {});
    ASSERT_TRUE(qmp.ok()) << qmp.status();
    qmp_ = *std::move(qmp);
  }
  std::optional<Standstill> Find() {
    auto found = state_.Find(*qmp_, disks_, kLimit);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.value_or(std::nullopt);
  }
  void IoError(const std::string& node, const std::string& operation, const std::string& action) {
    state_.Note({.name = "BLOCK_IO_ERROR",
                 .data = {{"node-name", node},
                          {"operation", operation},
                          {"action", action},
                          {"nospace", true},
                          {"reason", "No space left on device"}}});
  }

  std::string status_ = "running";  // Changed while nobody asks.
  std::atomic<int> conts_ = 0;
  testing::FakeQmpServer server_{[this](const nlohmann::json& command) -> std::vector<std::string> {
    if (command["execute"] == "cont") ++conts_;
    return {R"({"return": {"running": false, "status": ")" + status_ + R"("}, "id": @ID})"};
  }};
  std::unique_ptr<QmpClient> qmp_;
  const std::vector<DiskConfig> disks_{{.name = "vda"}, {.name = "vdb"}};
  QemuRunState state_;
};

TEST_F(QemuRunStateTest, WhatRunsOrSleepsOrHasPanickedIsNotOursToResume) {
  for (const char* status : {"running", "suspended", "guest-panicked", "internal-error", "shutdown", "inmigrate"}) {
    status_ = status;
    EXPECT_FALSE(Find().has_value()) << status;
  }
}

TEST_F(QemuRunStateTest, ADiskThatHoldsItIsNamedWithTheReason) {
  IoError("disk0", "write", "report");  // The guest was told.
  IoError("disk1-cbw-0123456789abcdef", "write", "stop");
  status_ = "io-error";
  auto held = Find();
  ASSERT_TRUE(held.has_value());
  EXPECT_EQ(held->kind, Standstill::Kind::kHeld);
  EXPECT_EQ(held->disk, "vdb");
  EXPECT_TRUE(held->write);
  EXPECT_EQ(held->reason, "No space left on device");
  EXPECT_TRUE(state_.HeldBy(disks_).has_value());
  state_.Note({.name = "RESUME", .data = nlohmann::json::object()});
  EXPECT_FALSE(state_.HeldBy(disks_).has_value());
}

TEST_F(QemuRunStateTest, ACapturesPauseIsItsOwnToEndUntilItIsForgotten) {
  status_ = "paused";
  ASSERT_TRUE(Find().has_value());
  EXPECT_EQ(Find()->kind, Standstill::Kind::kPaused);
  EXPECT_THAT(Find()->reason, HasSubstr("paused"));
  state_.BeginPause(kLimit);
  EXPECT_FALSE(Find().has_value());
  EXPECT_EQ(state_.Resume(*qmp_).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(conts_, 0);
  state_.EndPause();
  EXPECT_TRUE(Find().has_value());
  EXPECT_TRUE(state_.Resume(*qmp_).ok());
  EXPECT_EQ(conts_, 1);
  state_.BeginPause(absl::ZeroDuration());
  EXPECT_TRUE(Find().has_value()) << "longer than a capture may take";
  EXPECT_TRUE(state_.Resume(*qmp_).ok());
}

}  // namespace
}  // namespace still::session
