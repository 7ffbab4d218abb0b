// Who may become a guest's agent, and who may not take its place.
#include "session/guest/guest_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fake_agent.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

// Against a hang only: what is awaited takes milliseconds.
constexpr absl::Duration kLinkPatience = absl::Seconds(60);
// A silent connection is waited for 10 s (guest_link.cc); so many, one after the other, far longer than that.
constexpr int kSilentRounds = 12;

class GuestLinkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    impostor_lines_ = 0;
    SetLogSink([](absl::string_view line) { impostor_lines_ += absl::StrContains(line, "unprivileged port") ? 1 : 0; });
    auto vsock = std::make_unique<still::testing::ScriptedVsock>();
    vsock_ = vsock.get();
    first_.version = "first";
    second_.version = "second";
    link_ = std::make_unique<GuestLink>(std::move(vsock), GuestHello{.session = "web"});
  }

  void TearDown() override {
    link_.reset();  // Its threads log.
    SetLogSink(nullptr);
  }

  // The version of the agent that answers.
  std::string Agent() {
    auto client = link_->Client(kLinkPatience);
    return client.ok() ? (*client)->init().agent_version() : std::string(client.status().message());
  }
  bool ComesTrue(const std::function<bool()>& condition) {
    const absl::Duration deadline = Clock::Real().Monotonic() + kLinkPatience;
    while (!condition() && Clock::Real().Monotonic() < deadline) Clock::Real().Sleep(absl::Milliseconds(5));
    return condition();
  }

  static inline std::atomic<int> impostor_lines_ = 0;
  still::testing::ScriptedVsock* vsock_ = nullptr;
  still::testing::FakeAgent first_;
  still::testing::FakeAgent second_;
  std::unique_ptr<GuestLink> link_;
};

TEST_F(GuestLinkTest, AnAgentThatAnswersIsNotDisplaced) {
  vsock_->Push(first_.Dial());
  EXPECT_EQ(Agent(), "first");
  vsock_->Push(second_.Dial());
  ASSERT_TRUE(ComesTrue([&] { return !link_->refused().empty(); })) << "the second one was never looked at";
  EXPECT_THAT(link_->refused(), HasSubstr("it answers"));
  EXPECT_EQ(Agent(), "first");
  EXPECT_EQ(link_->agent_version(), "first");
}

TEST_F(GuestLinkTest, WhereTheConnectionHasEndedTheNextOneIsTheAgent) {
  auto connection = first_.Dial();
  ASSERT_TRUE(connection.ok());
  auto other_end = connection->Duplicate();
  ASSERT_TRUE(other_end.ok());
  vsock_->Push(std::move(connection));
  EXPECT_EQ(Agent(), "first");
  ASSERT_EQ(::shutdown(other_end->get(), SHUT_RDWR), 0);
  vsock_->Push(second_.Dial());
  EXPECT_EQ(Agent(), "second");
}

TEST_F(GuestLinkTest, AnAgentThatHangsIsDisplaced) {
  // Shared with the agent's thread, which may still be in the call when this test is over.
  auto over = std::make_shared<absl::Notification>();
  auto hangs = std::make_shared<std::atomic<bool>>(false);
  absl::Cleanup end = [over] { over->Notify(); };
  first_.lie = [over, hangs](const std::string& call, google::protobuf::Message&) {
    if (*hangs && call == "Ping") over->WaitForNotification();
    return grpc::Status::OK;
  };
  vsock_->Push(first_.Dial());
  EXPECT_EQ(Agent(), "first");
  *hangs = true;
  vsock_->Push(second_.Dial());
  EXPECT_TRUE(ComesTrue([&] { return link_->agent_version() == "second"; }));
}

TEST_F(GuestLinkTest, SilentConnectionsHoldNobodyUp) {
  // Waited for, as many at a time as there may be handshakes, they would take longer than `kLinkPatience`.
  std::vector<OwnedFd> silent;
  for (int i = 0; i < kSilentRounds * GuestLink::kMaxHandshakes; ++i) {
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    silent.push_back(std::move(pair->second));
    vsock_->Push(std::move(pair->first));
  }
  vsock_->Push(first_.Dial());
  // The agent dials again when it was turned away in the crowd.
  const absl::Duration begun = Clock::Real().Monotonic();
  auto client = link_->Client(absl::Milliseconds(500));
  while (!client.ok() && Clock::Real().Monotonic() - begun < kLinkPatience) {
    vsock_->Push(first_.Dial());
    client = link_->Client(absl::Milliseconds(500));
  }
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->init().agent_version(), "first");
}

TEST_F(GuestLinkTest, ALinkEndsWithoutWaitingForSilentConnections) {
  const absl::Duration begun = Clock::Real().Monotonic();
  for (int i = 0; i < kSilentRounds; ++i) {
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    auto vsock = std::make_unique<still::testing::ScriptedVsock>();
    vsock->Push(std::move(pair->first));
    GuestLink link(std::move(vsock), GuestHello{.session = "web"});
    pollfd greeted{.fd = pair->second.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&greeted, 1, static_cast<int>(absl::ToInt64Milliseconds(kLinkPatience))), 1);
  }
  EXPECT_LT(Clock::Real().Monotonic() - begun, kLinkPatience);
}

TEST_F(GuestLinkTest, WhoWasTurnedAwayIsNamedWhereAnAgentIsMissed) {
  vsock_->Push(absl::PermissionDeniedError("it dialled from an unprivileged port"));
  ASSERT_TRUE(ComesTrue([&] { return !link_->refused().empty(); }));
  EXPECT_THAT(std::string(link_->Client(absl::Milliseconds(10)).status().message()), HasSubstr("unprivileged port"));
  vsock_->Push(first_.Dial());
  EXPECT_EQ(Agent(), "first");
  EXPECT_EQ(link_->refused(), "") << "past";
}

TEST_F(GuestLinkTest, ASecondAgentThatDialsAgainAndAgainDoesNotHideTheLineAboutAnImpostor) {
  vsock_->Push(first_.Dial());
  EXPECT_EQ(Agent(), "first");
  vsock_->Push(second_.Dial());
  EXPECT_TRUE(ComesTrue([&] { return absl::StrContains(link_->refused(), "has a connected agent"); }));
  vsock_->Push(absl::PermissionDeniedError("it dialled from an unprivileged port"));
  EXPECT_TRUE(ComesTrue([] { return impostor_lines_ == 1; }));
}

TEST_F(GuestLinkTest, AFrozenGuestIsAskedAgainToPowerOff) {
  std::atomic<int> asked = 0;
  first_.lie = [&](const std::string& call, google::protobuf::Message&) {
    if (call != "Shutdown" || ++asked > 2) return grpc::Status::OK;
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "refused while the guest is frozen");
  };
  vsock_->Push(first_.Dial());
  int waits = 0;
  auto runs_on = [&waits](absl::Duration) { return ++waits > 100; };
  absl::Status status = link_->PowerOff(kLinkPatience, runs_on);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(asked, 3);
  EXPECT_EQ(waits, 2);
  // Not once the VM has ended.
  asked = 0;
  EXPECT_TRUE(link_->PowerOff(kLinkPatience, [](absl::Duration) { return true; }).ok());
  EXPECT_EQ(asked, 1);
}

}  // namespace
}  // namespace still::session
