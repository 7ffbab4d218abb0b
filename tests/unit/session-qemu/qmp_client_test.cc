#include "session/hypervisor/qemu/qmp_client.h"

#include <sys/stat.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/unit/session-qemu/fake_qmp_server.h"

namespace still::session {
namespace {

using nlohmann::json;
using ::still::testing::FakeQmpServer;
using ::testing::HasSubstr;

constexpr absl::Duration kAnswerPatience = absl::Seconds(20);
constexpr char kOk[] = R"({"return": {}, "id": @ID})";

std::vector<std::string> AlwaysOk(const json&) { return {kOk}; }

std::unique_ptr<QmpClient> ConnectTo(FakeQmpServer& server, QmpClient::Options options = {}) {
  auto client = QmpClient::Connect(server.TakeClient(), std::move(options));
  EXPECT_TRUE(client.ok()) << client.status();
  return client.ok() ? *std::move(client) : nullptr;
}

std::string Event(const std::string& name, const std::string& data = "{}") {
  return absl::StrCat(R"({"timestamp": {"seconds": 100, "microseconds": 250000}, "event": ")", name, R"(", "data": )",
                      data, "}");
}

TEST(QmpClient, CommandsCarryTheirArgumentsAndBringAnswersBack) {
  FakeQmpServer server([](const json& command) -> std::vector<std::string> {
    EXPECT_EQ(command["arguments"]["path"], "/machine");
    return {R"({"return": {"x": [1, 2]}, "id": @ID})"};
  });
  auto client = ConnectTo(server);
  auto answer = client->Execute("qom-list", {{"path", "/machine"}}, kAnswerPatience);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ((*answer)["x"][1], 2);
}

TEST(QmpClient, ErrorsSayWhatQemuSaid) {
  FakeQmpServer server([](const json& command) -> std::vector<std::string> {
    std::string error_class = command["execute"] == "a"   ? "GenericError"
                              : command["execute"] == "b" ? "CommandNotFound"
                                                          : "DeviceNotFound";
    return {absl::StrCat(R"({"id": @ID, "error": {"class": ")", error_class, R"(", "desc": "no such luck"}})")};
  });
  auto client = ConnectTo(server);
  EXPECT_EQ(client->Run("a", {}, kAnswerPatience), absl::FailedPreconditionError("a: no such luck"));
  EXPECT_EQ(client->Run("b", {}, kAnswerPatience), absl::UnimplementedError("b: no such luck"));
  EXPECT_EQ(client->Run("c", {}, kAnswerPatience), absl::NotFoundError("c: no such luck"));
}

TEST(QmpClient, ALateAnswerIsNotTakenForTheNextOne) {
  std::string held;
  FakeQmpServer server([&held](const json& command) -> std::vector<std::string> {
    if (command["execute"] == "slow") {
      held = absl::StrCat(R"({"return": "slow", "id": )", command["id"].dump(), "}");
      return {};
    }
    return {held, R"({"return": "fast", "id": @ID})"};
  });
  auto client = ConnectTo(server);
  EXPECT_EQ(client->Run("slow", {}, absl::Milliseconds(20)).code(), absl::StatusCode::kDeadlineExceeded);
  auto answer = client->Execute("fast", {}, kAnswerPatience);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(*answer, "fast");
}

TEST(QmpClient, EventsReachTheirSubscribersWithTheirTimes) {
  std::atomic<int> seen = 0;
  FakeQmpServer server([](const json&) -> std::vector<std::string> {
    return {Event("STOP"), Event("RTC_CHANGE"), Event("MIGRATION", R"({"status": "active"})"), kOk};
  });
  auto client = ConnectTo(server, {.on_event = [&seen](const QmpEvent&) { ++seen; }});
  QmpSubscription subscription = client->Subscribe({"STOP", "MIGRATION"});
  QmpSubscription other = client->Subscribe({"RESUME"});
  ASSERT_TRUE(client->Run("stop", {}, kAnswerPatience).ok());
  auto stop = subscription.Next(kAnswerPatience);
  ASSERT_TRUE(stop.ok()) << stop.status();
  EXPECT_EQ(stop->name, "STOP");
  EXPECT_EQ(stop->time, absl::FromUnixMillis(100250));
  auto migration = subscription.Next(kAnswerPatience);
  ASSERT_TRUE(migration.ok()) << migration.status();
  EXPECT_EQ(TextAt(migration->data, "status"), "active");
  EXPECT_EQ(subscription.Next(absl::Milliseconds(1)).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(other.Next(absl::Milliseconds(1)).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(seen, 3);
}

TEST(QmpClient, AFloodOfEventsIsBounded) {
  FakeQmpServer server([](const json&) -> std::vector<std::string> {
    std::vector<std::string> lines(QmpClient::kMaxQueuedEvents + 50, Event("STOP"));
    lines.push_back(kOk);
    return lines;
  });
  auto client = ConnectTo(server);
  QmpSubscription subscription = client->Subscribe({"STOP"});
  ASSERT_TRUE(client->Run("flood", {}, kAnswerPatience).ok());
  size_t count = 0;
  while (subscription.Next(absl::ZeroDuration()).ok()) ++count;
  EXPECT_EQ(count, QmpClient::kMaxQueuedEvents);
}

TEST(QmpClient, ALostSocketEndsEveryWait) {
  FakeQmpServer server([](const json&) -> std::vector<std::string> { return {""}; });
  auto client = ConnectTo(server);
  QmpSubscription subscription = client->Subscribe({"STOP"});
  EXPECT_EQ(client->Run("quit", {}, kAnswerPatience).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(subscription.Next(kAnswerPatience).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client->Run("cont", {}, kAnswerPatience).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client->Subscribe({"X"}).Next(kAnswerPatience).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(client->connected());
}

TEST(QmpClient, ADescriptorGoesAlong) {
  FakeQmpServer server(AlwaysOk);
  auto client = ConnectTo(server);
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ASSERT_TRUE(client->RunWithFd("getfd", {{"fdname", "x"}}, pair->first.get(), kAnswerPatience).ok());
  struct stat sent {
  }, received{};
  ASSERT_EQ(::fstat(pair->first.get(), &sent), 0);
  ASSERT_EQ(::fstat(server.received_fd(), &received), 0);
  EXPECT_EQ(sent.st_ino, received.st_ino);
}

TEST(QmpClient, ThreadsMayExecuteAtTheSameTime) {
  FakeQmpServer server([](const json& command) -> std::vector<std::string> {
    return {absl::StrCat(R"({"return": )", command["arguments"]["n"].dump(), R"(, "id": @ID})")};
  });
  auto client = ConnectTo(server);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&client, thread] {
      for (int i = 0; i < 50; ++i) {
        int n = thread * 1000 + i;
        auto answer = client->Execute("echo", {{"n", n}}, kAnswerPatience);
        ASSERT_TRUE(answer.ok()) << answer.status();
        EXPECT_EQ(*answer, n);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(QmpClient, NothingOrRubbishInPlaceOfAGreeting) {
  FakeQmpServer silent(AlwaysOk, "");
  EXPECT_EQ(QmpClient::Connect(silent.TakeClient(), {.handshake_deadline = absl::Milliseconds(20)}).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  FakeQmpServer rubbish(AlwaysOk, "hello [there");
  EXPECT_EQ(QmpClient::Connect(rubbish.TakeClient(), {}).status().code(), absl::StatusCode::kUnavailable);
  FakeQmpServer endless(AlwaysOk, std::string(QmpClient::kMaxLineBytes + (1 << 20), 'x'));
  auto refused = QmpClient::Connect(endless.TakeClient(), {});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
}

TEST(QmpClient, MembersThatAreMissingAreNull) {
  json object = {{"a", {{"b", "text"}}}};
  EXPECT_EQ(TextAt(Member(object, "a"), "b"), "text");
  EXPECT_EQ(TextAt(Member(object, "x"), "b"), "");
  EXPECT_TRUE(Member(json(3), "b").is_null());
}

}  // namespace
}  // namespace still::session
