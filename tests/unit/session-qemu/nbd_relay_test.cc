#include "session/hypervisor/qemu/nbd_relay.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

constexpr absl::Duration kRelayPatience = absl::Seconds(30);
constexpr size_t kAnswerBytes = 8 << 20;  // Many times what sockets and pipe hold.

std::string Answer() {
  std::string answer(kAnswerBytes, '\0');
  for (size_t i = 0; i < answer.size(); ++i) answer[i] = static_cast<char>(i % 251);
  return answer;
}

class NbdRelayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-relay-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    auto listening = ListenUnix(JoinPath(directory_, "server"), NbdRelay::kMaxClients);
    ASSERT_TRUE(listening.ok()) << listening.status();
    listening_ = *std::move(listening);
  }
  void TearDown() override {
    relay_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }
  void Start(absl::Duration stall_limit) {
    auto relay = NbdRelay::Start({.path = JoinPath(directory_, "clients"),
                                  .server_path = JoinPath(directory_, "server"),
                                  .stall_limit = stall_limit});
    ASSERT_TRUE(relay.ok()) << relay.status();
    relay_ = *std::move(relay);
  }
  struct Ends {
    OwnedFd client;
    OwnedFd server;
  };
  Ends Connect() {
    Ends ends;
    auto client = ConnectUnix(JoinPath(directory_, "clients"));
    EXPECT_TRUE(client.ok()) << client.status();
    if (client.ok()) ends.client = *std::move(client);
    auto server = AcceptWithin(listening_.get(), kRelayPatience, "the relay");
    EXPECT_TRUE(server.ok()) << server.status();
    if (server.ok()) ends.server = *std::move(server);
    return ends;
  }
  static std::string Ask(const Ends& ends, std::string text) {
    EXPECT_TRUE(WriteAll(ends.client.get(), text.data(), text.size(), "request").ok());
    EXPECT_TRUE(ReadExactly(ends.server.get(), text.data(), text.size(), "request").ok());
    return text;
  }
  // The server's part: false when the client's end is noticed.
  static bool Send(const OwnedFd& server, const std::string& answer) {
    for (size_t at = 0; at < answer.size();) {
      ssize_t put = ::send(server.get(), answer.data() + at, answer.size() - at, MSG_NOSIGNAL);
      if (put <= 0) return false;
      at += static_cast<size_t>(put);
    }
    return true;
  }

  // Waits until the server's client has gone.
  static bool IsLeft(const OwnedFd& server) {
    char byte;
    return ::recv(server.get(), &byte, 1, 0) <= 0;
  }

  std::string directory_;
  OwnedFd listening_;
  std::unique_ptr<NbdRelay> relay_;
};

TEST_F(NbdRelayTest, PassesEverythingOnBothWaysAndInOrder) {
  Start(absl::InfiniteDuration());
  Ends first = Connect();
  Ends second = Connect();
  EXPECT_EQ(Ask(second, "two"), "two");
  EXPECT_EQ(Ask(first, "one"), "one");
  const std::string answer = Answer();
  std::thread sender([&] { EXPECT_TRUE(Send(first.server, answer)); });
  std::string got(kAnswerBytes, '\0');
  EXPECT_TRUE(ReadExactly(first.client.get(), got.data(), got.size(), "answer").ok());
  EXPECT_TRUE(got == answer);
  sender.join();
  EXPECT_TRUE(relay_->status().ok());
}

TEST_F(NbdRelayTest, AServerNeverWaitsForAClientThatHangs) {
  Start(absl::InfiniteDuration());
  Ends hung = Connect();
  const std::string answer = Answer();
  EXPECT_TRUE(Send(hung.server, answer));
  hung.server.Reset();
  std::string got(kAnswerBytes, '\0');
  EXPECT_TRUE(ReadExactly(hung.client.get(), got.data(), got.size(), "answer").ok());
  EXPECT_TRUE(got == answer);
  char byte;
  EXPECT_EQ(::read(hung.client.get(), &byte, 1), 0);
  EXPECT_TRUE(relay_->status().ok());
}

TEST_F(NbdRelayTest, WhatIsHeldForAClientThatGoesOnArrivesInOrder) {
  Start(absl::InfiniteDuration());
  Ends slow = Connect();
  const std::string answer = Answer();
  std::string got(2 * answer.size(), '\0');
  EXPECT_TRUE(Send(slow.server, answer));
  EXPECT_TRUE(ReadExactly(slow.client.get(), got.data(), answer.size() / 2, "half of it").ok());
  EXPECT_EQ(Ask(slow, "more"), "more");
  EXPECT_TRUE(Send(slow.server, answer));
  EXPECT_TRUE(
      ReadExactly(slow.client.get(), got.data() + answer.size() / 2, got.size() - answer.size() / 2, "rest").ok());
  EXPECT_TRUE(got == answer + answer);
}

TEST_F(NbdRelayTest, AClientThatAskedForTooMuchIsCutOff) {
  Start(absl::InfiniteDuration());
  Ends hung = Connect();
  EXPECT_FALSE(Send(hung.server, std::string(NbdRelay::kMaxHeldBytes + kAnswerBytes, 'x')));
  EXPECT_EQ(relay_->status().code(), absl::StatusCode::kResourceExhausted) << relay_->status();
}

TEST_F(NbdRelayTest, AClientThatHangsIsCutOffAndItAlone) {
  Start(absl::Milliseconds(100));
  Ends hung = Connect();
  Ends other = Connect();
  (void)Send(hung.server, Answer());
  EXPECT_TRUE(IsLeft(hung.server));
  EXPECT_EQ(relay_->status().code(), absl::StatusCode::kDeadlineExceeded) << relay_->status();
  EXPECT_EQ(Ask(other, "still here"), "still here");
}

TEST_F(NbdRelayTest, AClientThatAsksForNothingIsNotHung) {
  const absl::Duration limit = absl::Milliseconds(20);
  Start(limit);
  Ends quiet = Connect();
  Ends hung = Connect();
  (void)Send(hung.server, Answer());
  EXPECT_TRUE(IsLeft(hung.server));  // So long it takes at least.
  EXPECT_EQ(Ask(quiet, "hello"), "hello");
}

TEST_F(NbdRelayTest, AClientThatGoesIsGoneForTheServerToo) {
  Start(absl::InfiniteDuration());
  Ends gone = Connect();
  gone.client.Reset();
  char byte;
  EXPECT_EQ(::read(gone.server.get(), &byte, 1), 0);
  EXPECT_FALSE(Send(gone.server, Answer()));
}

TEST_F(NbdRelayTest, WhatAServerSaysBeforeItGoesArrives) {
  Start(absl::InfiniteDuration());
  Ends ends = Connect();
  EXPECT_TRUE(Send(ends.server, "no such export"));
  ends.server.Reset();
  std::string said(14, '\0');
  EXPECT_TRUE(ReadExactly(ends.client.get(), said.data(), said.size(), "answer").ok());
  EXPECT_EQ(said, "no such export");
  char byte;
  EXPECT_EQ(::read(ends.client.get(), &byte, 1), 0);
}

TEST_F(NbdRelayTest, DestroyedItLeavesTheServerNoClient) {
  Start(absl::InfiniteDuration());
  Ends hung = Connect();
  EXPECT_TRUE(Send(hung.server, Answer()));
  EXPECT_EQ(Ask(hung, "more"), "more");
  relay_.reset();
  EXPECT_TRUE(IsLeft(hung.server));
  EXPECT_FALSE(ConnectUnix(JoinPath(directory_, "clients")).ok());
}

TEST_F(NbdRelayTest, MoreClientsThanItTakesWaitTheirTurn) {
  Start(absl::InfiniteDuration());
  std::vector<Ends> all;
  for (int i = 0; i < NbdRelay::kMaxClients; ++i) all.push_back(Connect());
  auto late = ConnectUnix(JoinPath(directory_, "clients"));
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_FALSE(AcceptWithin(listening_.get(), absl::ZeroDuration(), "one too many").ok());
  all.pop_back();
  EXPECT_TRUE(AcceptWithin(listening_.get(), kRelayPatience, "the one that waited").ok());
}

TEST_F(NbdRelayTest, WithoutAServerAClientIsTurnedAway) {
  Start(absl::InfiniteDuration());
  listening_.Reset();
  auto client = ConnectUnix(JoinPath(directory_, "clients"));
  ASSERT_TRUE(client.ok()) << client.status();
  char byte;
  EXPECT_EQ(::read(client->get(), &byte, 1), 0);
}

}  // namespace
}  // namespace still::session
