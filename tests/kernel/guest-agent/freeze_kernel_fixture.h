// Real file systems and an agent's parts over them, for tests of freezes: one sandbox for the whole program.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/process.h"
#include "gtest/gtest.h"
#include "guest-agent/freeze_controller.h"
#include "tests/kernel/guest-agent/sandbox.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {

inline Sandbox* sandbox = nullptr;
inline std::string skip_reason;

class SandboxEnvironment : public ::testing::Environment {
 public:
  void SetUp() override {
    owned_ = Sandbox::Make(skip_reason);
    sandbox = owned_.get();
  }
  void TearDown() override { owned_.reset(); }

 private:
  std::unique_ptr<Sandbox> owned_;
};
inline const auto* const environment = ::testing::AddGlobalTestEnvironment(new SandboxEnvironment);

inline std::string At(absl::string_view name) { return *sandbox / name; }

// An agent's parts, with the machine's clock and timer.
struct Agent {
  explicit Agent(const std::string& marker) : marker_path(marker) {}
  std::string marker_path;
  SandboxFreezer freezer{*sandbox};
  FakeHooks hooks;
  KernelDisks disks{SandboxDisks(*sandbox)};
  std::unique_ptr<LeaseTimer> timer = *MakeKernelLeaseTimer();
  FreezeController controller{{.freezer = freezer,
                               .hooks = hooks,
                               .disks = disks,
                               .marker = FreezeMarker(marker_path),
                               .timer = *timer,
                               .clock = Clock::Real()}};
};

class FreezeKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (sandbox == nullptr) GTEST_SKIP() << skip_reason;
    sandbox->Alive();
    agent_ = std::make_unique<Agent>(directory_ / "frozen");
  }
  void TearDown() override {
    if (sandbox == nullptr) return;
    agent_.reset();
    sandbox->ThawAndUnmountAll();
  }

  absl::StatusOr<pb::QuiesceResponse> Quiesce(const std::string& token, uint32_t lease_ms = 20000,
                                              std::vector<std::string> mounts = {}) {
    pb::QuiesceRequest request;
    request.set_token(token);
    request.set_lease_ms(lease_ms);
    for (std::string& mount : mounts) request.add_mounts(std::move(mount));
    return agent_->controller.Quiesce(request, "test");
  }
  pb::ThawResponse Thaw(const std::string& token) {
    pb::ThawRequest request;
    request.set_token(token);
    auto thawed = agent_->controller.Thaw(request);
    EXPECT_TRUE(thawed.ok()) << thawed.status();
    return thawed.value_or(pb::ThawResponse());
  }
  static std::vector<std::string> Frozen(const pb::QuiesceResponse& response) {
    std::vector<std::string> names;
    for (const auto& mount : response.frozen()) names.push_back(mount.mount_point());
    return names;
  }
  static std::map<std::string, pb::SkippedMount::Reason> Skipped(const pb::QuiesceResponse& response) {
    std::map<std::string, pb::SkippedMount::Reason> reasons;
    for (const auto& skipped : response.skipped()) reasons[skipped.mount_point()] = skipped.reason();
    return reasons;
  }
  // A writer stands still now, and goes on when `thaw` has run.
  static void ExpectWritersWaitFor(const std::vector<std::string>& names, const std::function<void()>& thaw) {
    std::vector<std::unique_ptr<Writer>> writers;
    for (const std::string& name : names) writers.push_back(std::make_unique<Writer>(At(name)));
    for (auto& writer : writers) EXPECT_TRUE(Eventually([&] { return writer->IsBlocked(); }));
    thaw();
    for (auto& writer : writers) EXPECT_TRUE(Eventually([&] { return writer->HasEnded(); }));
  }

  TempDir directory_;  // For the marker: outside of what is frozen.
  std::unique_ptr<Agent> agent_;
};

inline std::string RunTool(std::vector<std::string> argv) {
  auto output = RunCommand({.argv = std::move(argv)}, absl::Seconds(60));
  STILL_CHECK(output.ok() && output->exit.ok());
  return std::string(absl::StripAsciiWhitespace(output->stdout_text));
}

// A loop device over a new file of the sandbox; given back at the end, when nothing uses it any more.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    absl::StatusOr<OwnedFd> image = OpenFile(At(file), O_RDWR | O_CREAT | O_EXCL);
    STILL_CHECK(image.ok() && ::ftruncate(image->get(), 1 << 20) == 0);
    path_ = RunTool({"losetup", "--find", "--show", At(file)});
  }
  ~LoopDevice() { RunTool({"losetup", "--detach", path_}); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline const pb::Disk* FindDisk(const pb::QuiesceResponse& response, const std::string& node) {
  for (const pb::Disk& disk : response.disks()) {
    if (absl::EndsWith(node, absl::StrCat("/", disk.name()))) return &disk;
  }
  return nullptr;
}

}  // namespace still::agent
