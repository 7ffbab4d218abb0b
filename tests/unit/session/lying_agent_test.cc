// An agent that lies in every field of every answer: the call is not lost, and nothing of it is dangerous to show.
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/guest/guest_client.h"
#include "session/guest/guest_words.h"
#include "tests/guest/lies.h"
#include "tests/support/fake_agent.h"

namespace still::session {
namespace {

bool NeverCancelled() { return false; }

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using still::testing::Lie;
using still::testing::LieInEveryField;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(30);

int texts_seen = 0;

void ExpectClean(const Message& answer) {
  const google::protobuf::Reflection& reflection = *answer.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(answer, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? reflection.FieldSize(answer, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
        ExpectClean(field->is_repeated() ? reflection.GetRepeatedMessage(answer, field, i)
                                         : reflection.GetMessage(answer, field));
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        const std::string text =
            field->is_repeated() ? reflection.GetRepeatedString(answer, field, i) : reflection.GetString(answer, field);
        ++texts_seen;
        EXPECT_LE(text.size(), kMaxGuestText) << field->full_name();
        EXPECT_EQ(text.find_first_of("\x1b\x07\n\xff"), std::string::npos) << field->full_name();
        EXPECT_THAT(text, HasSubstr("owned")) << "the call's content is not lost";
      }
    }
  }
}

class LyingAgentTest : public ::testing::Test {
 protected:
  std::unique_ptr<GuestClient> Connect() {
    auto connection = agent_.Dial();
    EXPECT_TRUE(connection.ok());
    auto client = GuestClient::Connect(*std::move(connection), {.session = "web"}, kTimeout);
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

  still::testing::FakeAgent agent_;
};

TEST_F(LyingAgentTest, EveryAnswerIsCleanedAndNoneIsLost) {
  agent_.lie = [](const std::string&, Message& answer) {
    answer.Clear();
    LieInEveryField(answer);
    return grpc::Status::OK;
  };
  texts_seen = 0;
  std::unique_ptr<GuestClient> client = Connect();
  ASSERT_NE(client, nullptr);
  ExpectClean(client->init());
  EXPECT_LE(client->init().agent_version().size(), kMaxGuestName);
  auto expect = [](const auto& answer) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    ExpectClean(*answer);
  };
  expect(client->Quiesce({}, kTimeout, NeverCancelled));
  expect(client->Thaw(guestpb::ThawRequest(), kTimeout));
  expect(client->QuiesceStatus(kTimeout));
  expect(client->AdoptIdentity({}, kTimeout, [] { return absl::OkStatus(); }));
  EXPECT_TRUE(client->RenewQuiesce("t", kTimeout).ok());
  EXPECT_TRUE(client->Ping(kTimeout).ok());
  EXPECT_TRUE(client->Shutdown(kTimeout).ok());
  EXPECT_GT(texts_seen, 25) << "the answers have that many texts at least; were they looked at?";
}

TEST_F(LyingAgentTest, ErrorsAreCleanedToo) {
  agent_.lie = [](const std::string& call, Message&) {
    return call == "Init" ? grpc::Status::OK : grpc::Status(grpc::StatusCode::INTERNAL, Lie().substr(0, 2000));
  };
  std::unique_ptr<GuestClient> client = Connect();
  ASSERT_NE(client, nullptr);
  const absl::Status error = client->QuiesceStatus(kTimeout).status();
  EXPECT_EQ(error.code(), absl::StatusCode::kInternal);
  EXPECT_LE(error.message().size(), kMaxGuestSentence + 64);
  EXPECT_EQ(error.message().find_first_of("\x1b\x07\n\xff"), absl::string_view::npos) << error;
}

TEST_F(LyingAgentTest, WhatIsBeyondTheLimitsIsAnErrorThatSaysSo) {
  std::function<void(guestpb::QuiesceResponse&)> fill;
  agent_.lie = [&](const std::string& call, Message& answer) {
    if (call == "Quiesce") fill(static_cast<guestpb::QuiesceResponse&>(answer));
    return grpc::Status::OK;
  };
  std::unique_ptr<GuestClient> client = Connect();
  ASSERT_NE(client, nullptr);
  fill = [](guestpb::QuiesceResponse& answer) {
    for (size_t i = 0; i <= kMaxGuestElements; ++i) answer.add_skipped();
  };
  EXPECT_EQ(client->Quiesce({}, kTimeout, NeverCancelled).status().code(), absl::StatusCode::kResourceExhausted);
  for (size_t size : {kMaxGuestAnswer, 4 * kMaxGuestAnswer}) {
    fill = [size](guestpb::QuiesceResponse& answer) { answer.add_skipped()->set_detail(std::string(size, 'x')); };
    EXPECT_EQ(client->Quiesce({}, kTimeout, NeverCancelled).status().code(), absl::StatusCode::kResourceExhausted)
        << size;
  }
  // Each byte of these becomes four.
  fill = [](guestpb::QuiesceResponse& answer) {
    for (int i = 0; i < 1000; ++i) answer.add_skipped()->set_detail(std::string(1000, '\x1b'));
  };
  EXPECT_EQ(client->Quiesce({}, kTimeout, NeverCancelled).status().code(), absl::StatusCode::kResourceExhausted);
  fill = [](guestpb::QuiesceResponse& answer) { answer.add_frozen()->set_mount_point("/data"); };
  EXPECT_TRUE(client->Quiesce({}, kTimeout, NeverCancelled).ok()) << "the connection lives on";
}

}  // namespace
}  // namespace still::session
