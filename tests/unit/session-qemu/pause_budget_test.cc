// One budget over all commands of a pause, against a QEMU that answers each of them in time and all of them too late.
#include "session/hypervisor/pause_budget.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <atomic>
#include <memory>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "session/hypervisor/qemu/qemu_capture.h"
#include "session/hypervisor/qemu/qemu_command.h"
#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

using ::nlohmann::json;
using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

// A QEMU with two disks that answers everything, and keeps account of what it has.
class SlowQemu {
 public:
  explicit SlowQemu(const std::string& directory) {
    machine_ = std::make_shared<QemuMachine>();
    machine_->directory = directory;
    for (const char* name : {"vda", "vdb"}) {
      machine_->disks.push_back({.name = name, .path = JoinPath(directory, name), .format = "raw"});
      EXPECT_TRUE(WriteFileAtomically(machine_->disks.back().path, "disk").ok());
    }
    auto qmp = QmpClient::Connect(server_.TakeClient(), {});
    EXPECT_TRUE(qmp.ok()) << qmp.status();
    machine_->qmp = *std::move(qmp);
  }

  std::shared_ptr<QemuMachine> machine() { return machine_; }
  // Each answer in the pause takes so long.
  void SlowInThePause(absl::Duration delay) { delay_ = absl::ToInt64Milliseconds(delay); }
  std::vector<std::string> commands() {
    absl::MutexLock lock(&mutex_);
    return commands_;
  }
  bool running() {
    absl::MutexLock lock(&mutex_);
    return running_;
  }

 private:
  std::vector<std::string> Answer(const json& command) {
    const std::string name = command["execute"];
    {
      absl::MutexLock lock(&mutex_);
      commands_.push_back(name);
      if (name == "stop") running_ = false;
      if (name == "cont") running_ = true;
    }
    if (name == "stop" || name == "qom-set") absl::SleepFor(absl::Milliseconds(delay_.load()));
    json answer = json::object();
    if (name == "query-status") answer = {{"running", true}, {"status", "running"}};
    if (name == "query-block-exports") answer = json::array();
    if (name == "qom-get") answer = "disk0";
    if (name == "query-named-block-nodes") {
      answer = json::array();
      for (size_t i = 0; i < 2; ++i)
        answer.push_back({{"node-name", DiskNode(i)}, {"image", {{"virtual-size", 4096}}}});
    }
    return {json{{"return", answer}, {"id", command["id"]}}.dump()};
  }

  absl::Mutex mutex_;
  std::vector<std::string> commands_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = true;
  std::atomic<int64_t> delay_ = 0;
  testing::FakeQmpServer server_{[this](const json& command) { return Answer(command); }};
  std::shared_ptr<QemuMachine> machine_;
};

class PauseBudgetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-pause-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string directory_;
};

TEST_F(PauseBudgetTest, CommandsThatAreEachInTimeAndTogetherTooLateAreUndone) {
  SlowQemu qemu(directory_);
  auto capture = PrepareQemuCapture(qemu.machine(), {.memory = false, .max_pause = absl::Seconds(1)}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  qemu.SlowInThePause(absl::Milliseconds(600));
  ASSERT_TRUE((*capture)->FlushDisks().ok());
  absl::Status pinned;
  {
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    pinned = (*capture)->PinDisks(*paused);
  }
  EXPECT_EQ(pinned.code(), absl::StatusCode::kDeadlineExceeded) << pinned;
  EXPECT_THAT(std::string(pinned.message()), HasSubstr("--max-pause"));
  EXPECT_TRUE(qemu.running()) << "the guard has ended the pause";
  qemu.SlowInThePause(absl::ZeroDuration());
  EXPECT_TRUE((*capture)->Release(false).ok());
}

TEST_F(PauseBudgetTest, WhenNothingIsLeftNothingMoreIsSent) {
  SlowQemu qemu(directory_);
  auto capture = PrepareQemuCapture(qemu.machine(), {.memory = false, .max_pause = absl::Seconds(1)}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  absl::SleepFor(absl::Seconds(1));
  EXPECT_EQ((*capture)->PinDisks(*paused).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(qemu.commands(), Not(Contains("qom-set")));
  ASSERT_TRUE(paused->Resume().ok());
  EXPECT_TRUE(qemu.running());
}

TEST_F(PauseBudgetTest, AnImageThatCannotBeWrittenBackFailsBeforeThePause) {
  SlowQemu qemu(directory_);
  auto capture = PrepareQemuCapture(qemu.machine(), {.memory = false}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(RemoveFile(qemu.machine()->disks[1].path).ok());
  EXPECT_EQ((*capture)->FlushDisks().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(qemu.commands(), Each(Not("stop")));
}

}  // namespace
}  // namespace still::session
