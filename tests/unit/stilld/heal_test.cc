// What stilld does at its start with sessions that were left paused or frozen.
#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/process_host.h"

namespace still::schedule {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A session's control service whose machine is as a test says.
class ScriptedSession final : public sessionpb::SessionControl::Service {
 public:
  grpc::Status Describe(grpc::ServerContext*, const sessionpb::DescribeRequest*,
                        sessionpb::DescribeResponse* response) override {
    absl::MutexLock lock(&mutex_);
    *response = state_;
    if (state_.state() == sessionpb::DescribeResponse::PAUSED) response->clear_agent();  // It does not answer.
    return grpc::Status::OK;
  }
  grpc::Status Resume(grpc::ServerContext*, const sessionpb::ResumeRequest*,
                      sessionpb::ResumeResponse* response) override {
    absl::MutexLock lock(&mutex_);
    calls_.push_back("Resume");
    if (old_) return {grpc::StatusCode::UNIMPLEMENTED, ""};
    response->set_was_paused(true);
    state_.set_state(sessionpb::DescribeResponse::RUNNING);
    return grpc::Status::OK;
  }
  grpc::Status Thaw(grpc::ServerContext*, const sessionpb::ThawRequest*, guestpb::ThawResponse*) override {
    absl::MutexLock lock(&mutex_);
    calls_.push_back("Thaw");
    state_.mutable_agent()->set_quiesce_state(guestpb::THAWED);
    return grpc::Status::OK;
  }

  void Set(const std::function<void(sessionpb::DescribeResponse&)>& change) {
    absl::MutexLock lock(&mutex_);
    change(state_);
  }
  // Older than Resume.
  void MakeOld() {
    absl::MutexLock lock(&mutex_);
    old_ = true;
  }
  std::vector<std::string> calls() {
    absl::MutexLock lock(&mutex_);
    return calls_;
  }

 private:
  absl::Mutex mutex_;
  sessionpb::DescribeResponse state_ ABSL_GUARDED_BY(mutex_);
  bool old_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mutex_);
};

class HealTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-heal-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    const store::RepositoryOptions repository = {.path = JoinPath(root_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    repository_ = *store::Repository::Open(repository);
    absl::StatusOr<session::SessionPlace> place = session::SessionRegistry(root_).Create("web");
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{\"name\":\"web\"}").ok());
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + JoinPath(place->directory, "control.sock"), grpc::InsecureServerCredentials());
    builder.RegisterService(&session_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    session_.Set([](sessionpb::DescribeResponse& state) {
      state.set_state(sessionpb::DescribeResponse::RUNNING);
      state.mutable_agent()->set_connected(true);
      state.mutable_agent()->set_quiesce_state(guestpb::THAWED);
    });
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    repository_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  void Pause() {
    session_.Set([](sessionpb::DescribeResponse& state) { state.set_state(sessionpb::DescribeResponse::PAUSED); });
  }
  void Freeze() {
    session_.Set([](sessionpb::DescribeResponse& state) { state.mutable_agent()->set_quiesce_state(guestpb::FROZEN); });
  }
  // How many were healed.
  int Heal() {
    ProcessHost host(*repository_, HostIdentity(), {.state = root_, .command = {"false"}});
    absl::StatusOr<int> healed = host.HealSessions();
    EXPECT_TRUE(healed.ok()) << healed.status();
    return healed.value_or(-1);
  }
  std::string root_;
  std::unique_ptr<store::Repository> repository_;
  ScriptedSession session_;
  std::unique_ptr<grpc::Server> server_;
};

TEST_F(HealTest, WhatRunsIsLeftAlone) {
  EXPECT_EQ(Heal(), 0);
  EXPECT_THAT(session_.calls(), IsEmpty());
}

TEST_F(HealTest, WhatWasLeftPausedAndFrozenGoesOnAndIsThawedThen) {
  Pause();
  Freeze();
  EXPECT_EQ(Heal(), 1);
  EXPECT_THAT(session_.calls(), ElementsAre("Resume", "Thaw"));
  EXPECT_EQ(Heal(), 0);
}

// Each would take the five seconds that a session may take to answer; one after the other they would take minutes.
TEST_F(HealTest, ThoseThatHangKeepNobodyWaiting) {
  constexpr int kHanging = 40;
  std::vector<OwnedFd> hanging;
  const session::SessionRegistry sessions(root_);
  for (int i = 0; i < kHanging; ++i) {
    absl::StatusOr<session::SessionPlace> place = sessions.Create(absl::StrCat("hung-", i));
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
    // It accepts, as the kernel does for every listener, and says nothing.
    absl::StatusOr<OwnedFd> socket = ListenUnix(JoinPath(place->directory, "control.sock"));
    ASSERT_TRUE(socket.ok()) << socket.status();
    hanging.push_back(*std::move(socket));
  }
  Freeze();
  const absl::Duration begin = Clock::Real().Monotonic();
  EXPECT_EQ(Heal(), 1);
  EXPECT_LT(Clock::Real().Monotonic() - begin, kHanging * absl::Seconds(5) / 3);
}

// Each end in words; and whether its runs are to fail, or there is nothing new to take.
TEST_F(HealTest, HowAMachineEndedDecidesWhetherItOughtToRun) {
  struct End {
    const char* json;
    bool ought_to_run;
    const char* told;
  };
  const std::map<std::string, End> ends = {
      {"a-stopped", {R"({"kind": "STOPPED"})", false, ""}},
      {"b-off", {R"({"kind": "POWERED_OFF"})", false, "powered off"}},
      {"c-limit", {R"({"kind": "TIMED_OUT"})", false, "timed out"}},
      {"d-crashed", {R"({"kind": "CRASHED", "error": "signal 9"})", true, "crashed: signal 9"}},
      {"e-killed", {R"({"kind": "KILLED"})", true, "killed"}},
      {"f-host", {R"({"kind": "HOST_RESTARTED"})", true, "ended with its host"}},
  };
  const session::SessionRegistry sessions(root_);
  for (const auto& [name, end] : ends) {
    absl::StatusOr<session::SessionPlace> place = sessions.Create(name);
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "end.json"), end.json).ok());
  }
  ProcessHost host(*repository_, HostIdentity(), {.state = root_, .command = {"false"}});
  absl::StatusOr<std::vector<SessionState>> states = host.Sessions();
  ASSERT_TRUE(states.ok()) << states.status();
  ASSERT_EQ(states->size(), ends.size() + 1);
  for (const SessionState& state : *states) {
    if (state.name == "web") continue;  // It runs.
    EXPECT_EQ(state.running, ends.at(state.name).ought_to_run) << state.name;
    EXPECT_EQ(state.ended, ends.at(state.name).told) << state.name;
  }
}

TEST_F(HealTest, AMachineThatIsHeldSaysWhyAndOneThatHangsHoldsUpNobody) {
  Pause();
  session_.Set([](sessionpb::DescribeResponse& state) { state.set_disk_trouble("disk vda cannot be written"); });
  ProcessHost host(*repository_, HostIdentity(), {.state = root_, .command = {"false"}});
  EXPECT_EQ(host.Sessions()->front().held, "") << "nobody has asked yet";
  host.watch().AskOnce();
  EXPECT_EQ(host.Sessions()->front().held, "disk vda cannot be written");
  server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
  absl::StatusOr<OwnedFd> hangs = ListenUnix(JoinPath(root_, "sessions/web/control.sock"));
  ASSERT_TRUE(hangs.ok()) << hangs.status();
  host.watch().AskOnce();
  EXPECT_EQ(host.Sessions()->front().held, "disk vda cannot be written") << "as far as is known";
  hangs->Reset();
  EXPECT_EQ(host.Sessions()->front().held, "") << "it is gone";
}

TEST_F(HealTest, HowOftenAMachineWasResetIsKnownFromItsSession) {
  session_.Set([](sessionpb::DescribeResponse& state) { state.set_reboots(7); });
  ProcessHost host(*repository_, HostIdentity(), {.state = root_, .command = {"false"}});
  EXPECT_FALSE(host.Sessions()->front().resets.has_value()) << "nobody has asked yet";
  host.watch().AskOnce();
  EXPECT_EQ(host.Sessions()->front().resets, 7u);
}

TEST_F(HealTest, WhatWasLeftFrozenIsThawed) {
  Freeze();
  EXPECT_EQ(Heal(), 1);
  EXPECT_THAT(session_.calls(), ElementsAre("Thaw"));
}

TEST_F(HealTest, APauseWithAReasonIsLeftToWhoeverHasIt) {
  Pause();
  session_.Set([](sessionpb::DescribeResponse& state) { state.set_active_capture("7"); });
  EXPECT_EQ(Heal(), 0);
  session_.Set([](sessionpb::DescribeResponse& state) {
    state.clear_active_capture();
    state.set_disk_trouble("the guest is held: no repository");
  });
  EXPECT_EQ(Heal(), 0);
  EXPECT_THAT(session_.calls(), IsEmpty());
}

TEST_F(HealTest, ASessionFromBeforeResumeIsOnlyTalkedAbout) {
  session_.MakeOld();
  Pause();
  EXPECT_EQ(Heal(), 0);
  EXPECT_THAT(session_.calls(), ElementsAre("Resume"));
}

}  // namespace
}  // namespace still::schedule
