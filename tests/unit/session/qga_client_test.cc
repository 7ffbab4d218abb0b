#include "session/guest/qga_client.h"

#include <sys/socket.h>

#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/match.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/session/fake_qga.h"

namespace still::session {
namespace {

using ::still::testing::FakeQga;
using ::testing::HasSubstr;

// Of answers that come.
constexpr absl::Duration kPatience = absl::Seconds(60);

class QgaClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<SocketPair> port = MakeSocketPair();
    ASSERT_TRUE(port.ok());
    client_ = std::make_unique<QgaClient>(std::move(port->first));
    guest_ = std::move(port->second);
  }
  void TearDown() override { client_.reset(); }

  void Serve(std::function<std::string(const std::string&)> answer) {
    qga_.emplace(std::move(guest_), std::move(answer));
  }
  void Say(absl::string_view text) { ASSERT_TRUE(WriteAll(guest_.get(), text.data(), text.size(), "port").ok()); }

  OwnedFd guest_;
  std::optional<FakeQga> qga_;  // Ends after its client.
  std::unique_ptr<QgaClient> client_;
};

TEST_F(QgaClientTest, ThawsAndSaysHowManyWereFrozen) {
  int asked = 0;
  Serve([&](const std::string& command) {
    EXPECT_EQ(command, "guest-fsfreeze-thaw");
    return ++asked == 1 ? "{\"return\": 3}\n" : "{\"return\": 0}\n";
  });
  EXPECT_EQ(client_->Thaw(kPatience).value(), 3u);
  EXPECT_EQ(client_->Thaw(kPatience).value(), 0u);
}

TEST_F(QgaClientTest, WhatEarlierCallersLeftInThePortIsPassedOver) {
  Say("half an answer{\n{\"return\": 99}\n\xff{\"return\": 7}\n{\"return\": 1");
  Serve([](const std::string&) { return "{\"return\": 2}\n"; });
  EXPECT_EQ(client_->Thaw(kPatience).value(), 2u);
}

TEST_F(QgaClientTest, ARefusalIsToldInItsWordsAndMadePrintable) {
  Serve([](const std::string&) { return "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"\x1b[2J\"}}\n"; });
  const absl::Status refused = client_->Thaw(kPatience).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("CommandNotFound"));
  EXPECT_THAT(refused.message(), HasSubstr("\\x1b[2J"));
}

TEST_F(QgaClientTest, NumbersThatAreNoneOfFileSystemsAreNotTaken) {
  int asked = 0;
  Serve([&](const std::string&) {
    constexpr const char* kAnswers[] = {"{\"return\": -1}\n", "{\"return\": {}}\n", "[]\n", "{\"return\": 1e300}\n",
                                        "{\"return\": 18446744073709551615}\n"};
    return kAnswers[asked++];
  });
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(client_->Thaw(kPatience).status().code(), absl::StatusCode::kFailedPrecondition) << i;
  }
  EXPECT_EQ(client_->Thaw(kPatience).value(), 1'000'000u);
}

TEST_F(QgaClientTest, NobodyAtTheOtherEnd) {
  EXPECT_EQ(client_->Thaw(absl::Milliseconds(50)).status().code(), absl::StatusCode::kUnavailable);
  // Whoever comes later finds only what is asked last.
  Serve([](const std::string&) { return "{\"return\": 1}\n"; });
  EXPECT_EQ(client_->Thaw(kPatience).value(), 1u);
}

TEST_F(QgaClientTest, APortThatNobodyReadsFillsUpAndIsGivenUp) {
  absl::Status status;
  // Far more than a socket holds.
  for (int i = 0; i < 100'000 && !absl::StrContains(status.message(), "reads its port"); ++i) {
    status = client_->Thaw(absl::ZeroDuration()).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_THAT(status.message(), HasSubstr("reads its port"));
}

TEST_F(QgaClientTest, AGuestThatFloodsIsGivenUp) {
  std::thread flood([this] {
    const std::string lines(64 << 10, '\n');
    // Until the client is gone.
    while (::send(guest_.get(), lines.data(), lines.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  EXPECT_THAT(client_->Thaw(kPatience).status().message(), HasSubstr("is no answer"));
  client_.reset();
  flood.join();
}

TEST_F(QgaClientTest, ALineWithoutEndIsGivenUp) {
  Say(std::string(10'000, 'x'));
  EXPECT_THAT(client_->Thaw(kPatience).status().message(), HasSubstr("has no end"));
}

TEST_F(QgaClientTest, APortThatCloses) {
  guest_.Reset();
  EXPECT_EQ(client_->Thaw(kPatience).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace still::session
