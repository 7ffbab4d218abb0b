// The pause of a background snapshot, against a QEMU that leaves a stopped machine stopped (9.0 and newer).
#include <gmock/gmock.h>
#include <stdlib.h>

#include <memory>

#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "session/hypervisor/qemu/qemu_capture.h"
#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

using ::nlohmann::json;
using ::testing::HasSubstr;

std::string EventAt(const char* name, int seconds, const json& data = json::object()) {
  return json{{"event", name}, {"data", data}, {"timestamp", {{"seconds", seconds}, {"microseconds", 0}}}}.dump();
}

class BackgroundPauseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-background-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    machine_->directory = directory_;
    machine_->capabilities.background_memory = true;
    auto qmp = QmpClient::Connect(server_.TakeClient(), {});
    ASSERT_TRUE(qmp.ok()) << qmp.status();
    machine_->qmp = *std::move(qmp);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  absl::StatusOr<std::unique_ptr<VmCapture>> Prepare(absl::Duration max_pause) {
    auto pair = MakeSocketPair();
    if (!pair.ok()) return pair.status();
    reader_ = std::move(pair->second);
    return PrepareQemuCapture(machine_, {.memory = true, .max_pause = max_pause}, std::move(pair->first));
  }
  bool running() {
    absl::MutexLock lock(&mutex_);
    return running_;
  }
  void SilentInThePause() {
    absl::MutexLock lock(&mutex_);
    silent_ = true;
  }

  std::vector<std::string> Answer(const json& command) {
    const std::string name = command["execute"];
    absl::MutexLock lock(&mutex_);
    if (name == "stop") running_ = false;
    json answer = json::object();
    if (name == "query-status") {
      if (!running_ && silent_) return {};
      answer = {{"running", running_}, {"status", running_ ? "running" : "paused"}};
    }
    if (name == "query-block-exports" || name == "query-named-block-nodes" || name == "query-yank") {
      answer = json::array();
    }
    if (name == "query-migrate") answer = {{"status", "active"}, {"ram", {{"normal", 1}}}};
    std::vector<std::string> lines;
    if (name == "stop") lines.push_back(EventAt("STOP", 200));
    if (name == "cont" && !running_) {
      running_ = true;
      lines.push_back(EventAt("RESUME", 201));
      lines.push_back(EventAt("MIGRATION", 202, {{"status", "completed"}}));
    }
    lines.push_back(json{{"return", answer}, {"id", command["id"]}}.dump());
    if (name == "migrate") lines.push_back(EventAt("MIGRATION", 200, {{"status", "active"}}));
    return lines;
  }

  absl::Mutex mutex_;
  bool running_ ABSL_GUARDED_BY(mutex_) = true;
  bool silent_ ABSL_GUARDED_BY(mutex_) = false;
  std::string directory_;
  OwnedFd reader_;
  testing::FakeQmpServer server_{[this](const json& command) { return Answer(command); }};
  std::shared_ptr<QemuMachine> machine_ = std::make_shared<QemuMachine>();
};

// As when the keeper resumes a machine that a full disk held, while the capture is prepared.
TEST_F(BackgroundPauseTest, AResumeFromBeforeThePauseDoesNotEndIt) {
  auto capture = Prepare(absl::Seconds(60));
  ASSERT_TRUE(capture.ok()) << capture.status();
  server_.Say(EventAt("RESUME", 100));
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  EXPECT_FALSE(running());
  ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
  auto report = (*capture)->SaveStateAndResume(*std::move(paused));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(running());
  EXPECT_EQ(report->paused, absl::Seconds(1)) << "from its own STOP to its own RESUME";
  EXPECT_TRUE((*capture)->Release(false).ok());
}

TEST_F(BackgroundPauseTest, WhatIsAskedInThePauseHasThePausesTime) {
  auto capture = Prepare(absl::Seconds(1));
  ASSERT_TRUE(capture.ok()) << capture.status();
  SilentInThePause();
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  auto report = (*capture)->SaveStateAndResume(*std::move(paused));
  EXPECT_EQ(report.status().code(), absl::StatusCode::kDeadlineExceeded) << report.status();
  EXPECT_THAT(std::string(report.status().message()), HasSubstr("--max-pause"));
  EXPECT_TRUE(running());
  EXPECT_TRUE((*capture)->Release(false).ok());
}

}  // namespace
}  // namespace still::session
