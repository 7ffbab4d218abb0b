// What of a lazily restored disk's hydration rests for a capture, and goes on after it.
#include "session/hypervisor/qemu/qemu_lazy_disk.h"

#include <gmock/gmock.h>

#include <map>
#include <memory>

#include "session/hypervisor/qemu/qemu_command.h"
#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class QemuLazyDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto qmp = QmpClient::Connect(server_.TakeClient(), {});
    ASSERT_TRUE(qmp.ok()) << qmp.status();
    machine_->qmp = *std::move(qmp);
    for (const char* name : {"vda", "vdb"}) machine_->disks.push_back({.name = name, .backing_export = "export"});
    disks_ = std::make_unique<QemuLazyDisks>(machine_);
  }
  // Those that Query() wakes.
  std::vector<std::string> Woken() {
    resumed_.clear();
    auto states = disks_->Query();
    EXPECT_TRUE(states.ok()) << states.status();
    return resumed_;
  }
  std::vector<std::string> Answer(const json& command) {
    const std::string name = command["execute"];
    json answer = json::object();
    if (name == "query-block-jobs") {
      answer = json::array();
      for (const char* job : {"hydrate-disk0", "hydrate-disk1"}) answer.push_back({{"device", job}, {"offset", 1}});
    }
    if (name == "query-named-block-nodes") {
      answer = json::array();
      for (size_t i = 0; i < 2; ++i) {
        answer.push_back({{"node-name", LazyOverlayNode(i, false)}, {"image", {{"virtual-size", 4096}}}});
      }
    }
    if (name == "block-job-resume") {
      const std::string job = command["arguments"]["device"];
      resumed_.push_back(job);
      if (auto error = errors_.find(job); error != errors_.end()) {
        return {json{{"error", {{"class", error->second}, {"desc", "no"}}}, {"id", command["id"]}}.dump()};
      }
    }
    return {json{{"return", answer}, {"id", command["id"]}}.dump()};
  }

  // Used while a command is answered, so by one thread at a time.
  std::vector<std::string> resumed_;
  std::map<std::string, std::string> errors_;  // Job -> class.
  testing::FakeQmpServer server_{[this](const json& command) { return Answer(command); }};
  std::shared_ptr<QemuMachine> machine_ = std::make_shared<QemuMachine>();
  std::unique_ptr<QemuLazyDisks> disks_;
};

TEST_F(QemuLazyDiskTest, WhatRestsForACaptureGoesOnAfterIt) {
  machine_->capture_active = true;
  disks_->Rest();
  EXPECT_THAT(Woken(), IsEmpty());
  machine_->capture_active = false;
  EXPECT_THAT(Woken(), ElementsAre("hydrate-disk0", "hydrate-disk1"));
  EXPECT_THAT(Woken(), IsEmpty());
}

TEST_F(QemuLazyDiskTest, AJobThatCannotGoOnHoldsNoOther) {
  for (const char* error : {"GenericError", "DeviceNotFound"}) {
    disks_->Rest();
    errors_["hydrate-disk0"] = error;
    EXPECT_THAT(Woken(), ElementsAre("hydrate-disk0", "hydrate-disk1"));
  }
}

TEST_F(QemuLazyDiskTest, WhatCouldNotBeWokenIsTriedAgain) {
  disks_->Rest();
  errors_["hydrate-disk0"] = "CommandNotFound";  // Any error that says nothing of the job.
  EXPECT_FALSE(disks_->Query().ok());
  errors_.clear();
  EXPECT_THAT(Woken(), ElementsAre("hydrate-disk0", "hydrate-disk1"));
}

}  // namespace
}  // namespace still::session
