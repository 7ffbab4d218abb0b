#include "session/control/session_registry.h"

#include <signal.h>
#include <stdlib.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/control/session_lock.h"
#include "session/session_config.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class SessionRegistryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-registry-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }

  // A session that has ended, as still-session leaves it.
  void MakeEnded(const SessionRegistry& sessions, const std::string& name) {
    auto place = sessions.Create(name);
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{\"name\":\"" + name + "\"}").ok());
    sessionpb::SessionEnd end;
    end.set_kind(sessionpb::SessionEnd::EXITED);
    end.set_exit_code(7);
    ASSERT_TRUE(WriteSessionEnd(place->directory, end).ok());
  }
  std::string root_;
};

TEST_F(SessionRegistryTest, AnUnknownSessionIsAnsweredWithTheOnesThereAre) {
  SessionRegistry sessions(root_);
  EXPECT_THAT(sessions.Find("web").status().message(), HasSubstr("no session \"web\"; there is none"));
  MakeEnded(sessions, "db");
  EXPECT_THAT(sessions.Find("web").status().message(), HasSubstr("there are: db"));
  EXPECT_EQ(sessions.Find("web").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SessionRegistryTest, AUniqueBeginningNamesASession) {
  SessionRegistry sessions(root_);
  EXPECT_EQ(sessions.Resolve("web").status().code(), absl::StatusCode::kNotFound);
  for (const char* name : {"web", "web-2", "db"}) MakeEnded(sessions, name);
  EXPECT_EQ(*sessions.Resolve("d"), "db");
  EXPECT_EQ(*sessions.Resolve("web"), "web");
  EXPECT_EQ(*sessions.Resolve("web-"), "web-2");
  EXPECT_EQ(sessions.Resolve("we").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(sessions.Resolve("wbe").status().message(), HasSubstr("did you mean \"web\"?"));
  EXPECT_EQ(sessions.Find("we").status().code(), absl::StatusCode::kNotFound) << "only Resolve() guesses";
}

TEST_F(SessionRegistryTest, RemembersHowASessionEnded) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  auto listed = sessions.List();
  ASSERT_TRUE(listed.ok());
  ASSERT_THAT(*listed, SizeIs(1));
  EXPECT_FALSE((*listed)[0].alive);
  EXPECT_EQ((*listed)[0].end->exit_code(), 7);
  EXPECT_THAT(sessions.Connect("db").status().message(), HasSubstr("not running: exited with code 7"));
}

TEST_F(SessionRegistryTest, AnEndThatNobodyRecordedIsFoundOut) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  const std::string directory = sessions.Directory("db");
  ASSERT_TRUE(RemoveFile(JoinPath(directory, "end.json")).ok());
  EXPECT_FALSE(sessions.Find("db")->end.has_value()) << "of before start.json";
  sessionpb::SessionStart start;
  start.set_boot_id(HostBootId());
  ASSERT_FALSE(start.boot_id().empty());
  ASSERT_TRUE(WriteSessionStart(directory, start).ok());
  EXPECT_EQ(sessions.Find("db")->end->kind(), sessionpb::SessionEnd::KILLED);
  start.set_boot_id("of another life");
  ASSERT_TRUE(WriteSessionStart(directory, start).ok());
  EXPECT_EQ(sessions.Find("db")->end->kind(), sessionpb::SessionEnd::HOST_RESTARTED);
  EXPECT_FALSE(EndedOnPurpose(*sessions.Find("db")->end));
}

TEST_F(SessionRegistryTest, AnOlderRecordOfACrashIsRead) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  ASSERT_TRUE(
      WriteFileAtomically(JoinPath(sessions.Directory("db"), "end.json"), R"({"kind": "ERROR", "error": "signal 9"})")
          .ok());
  EXPECT_EQ(DescribeEnd(*sessions.Find("db")->end), "crashed: signal 9");
}

TEST_F(SessionRegistryTest, ANameInUseIsRefusedWithTheWayOut) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  EXPECT_EQ(sessions.Create("db").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(sessions.Create("db").status().message(), HasSubstr("still rm db"));
  // Started again.
  ASSERT_TRUE(RemoveFile(JoinPath(sessions.Directory("db"), "end.json")).ok());
  auto alive = ListenUnix(JoinPath(sessions.Directory("db"), "control.sock"));
  ASSERT_TRUE(alive.ok());
  EXPECT_THAT(sessions.Create("db").status().message(), HasSubstr("is running"));
  EXPECT_EQ(sessions.Remove("db").code(), absl::StatusCode::kFailedPrecondition);
  alive->Reset();
  EXPECT_TRUE(sessions.Remove("db").ok());
  EXPECT_TRUE(sessions.Create("db").ok());
}

// Whoever only asks whether a session lives must not hang with it.
TEST_F(SessionRegistryTest, ASessionThatAcceptsNobodyIsThere) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  const std::string path = JoinPath(sessions.Directory("db"), "control.sock");
  auto hangs = ListenUnix(path, /*backlog=*/0);
  ASSERT_TRUE(hangs.ok());
  std::vector<OwnedFd> queue;
  absl::StatusOr<OwnedFd> next = ConnectUnix(path);
  for (; next.ok(); next = ConnectUnix(path)) queue.push_back(*std::move(next));
  EXPECT_TRUE(absl::IsDeadlineExceeded(next.status())) << next.status();
  EXPECT_TRUE(sessions.Find("db")->ready);
  // Not even for a second: a host may have many that hang.
  EXPECT_TRUE(IsListening(path));
  hangs->Reset();
  EXPECT_FALSE(IsListening(path));
}

// A session that starts, or hangs while it does, has no socket: what counts is the process.
TEST_F(SessionRegistryTest, ASessionThatIsNotReadyYetLives) {
  SessionRegistry sessions(root_);
  auto place = sessions.Create("db");
  ASSERT_TRUE(place.ok()) << place.status();
  ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
  auto entry = sessions.Find("db");
  ASSERT_TRUE(entry.ok()) << entry.status();
  EXPECT_TRUE(entry->alive);
  EXPECT_FALSE(entry->ready);
  EXPECT_THAT(sessions.Create("db").status().message(), HasSubstr("is just starting or ending"));
  EXPECT_THAT(sessions.Connect("db").status().message(), HasSubstr("is just starting"));
  EXPECT_TRUE(absl::IsFailedPrecondition(sessions.Remove("db")));
  EXPECT_TRUE(absl::IsDeadlineExceeded(sessions.AwaitGone("db", absl::Milliseconds(30))));

  place->lock.Reset();
  EXPECT_FALSE(sessions.Find("db")->alive);
  EXPECT_TRUE(sessions.AwaitGone("db", absl::ZeroDuration()).ok());
  EXPECT_TRUE(sessions.Remove("db").ok());
}

TEST_F(SessionRegistryTest, TheLockGoesAlongWithTheDirectoryAndIsHeldByWhoeverInheritedIt) {
  SessionRegistry sessions(root_);
  auto place = sessions.Create("db");
  ASSERT_TRUE(place.ok()) << place.status();
  ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
  auto child = ChildProcess::Start({.argv = {"sleep", "60"}, .inherited_fds = {place->lock.get()}});
  ASSERT_TRUE(child.ok()) << child.status();
  place->lock.Reset();
  std::filesystem::rename(place->directory, sessions.Directory("web"));
  EXPECT_TRUE(sessions.Find("web")->alive);
  EXPECT_TRUE(absl::IsFailedPrecondition(LockSession(sessions.Directory("web")).status()));
  ASSERT_TRUE(child->Kill(SIGKILL).ok());
  ASSERT_TRUE(child->Wait().ok());
  EXPECT_FALSE(sessions.Find("web")->alive) << "the kernel has released it";
}

TEST_F(SessionRegistryTest, OneThatIsJustEndingIsWaitedForBeforeItIsRemoved) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  auto lock = LockSession(sessions.Directory("db"));
  ASSERT_TRUE(lock.ok()) << lock.status();
  EXPECT_TRUE(sessions.Find("db")->alive);
  EXPECT_EQ(sessions.Find("db")->end->exit_code(), 7);
  std::thread ends([&] {
    absl::SleepFor(absl::Milliseconds(100));
    lock->Reset();
  });
  EXPECT_TRUE(sessions.Remove("db").ok());
  ends.join();
}

}  // namespace
}  // namespace still::session
