#include "session/control/session_registry.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

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
    auto directory = sessions.Create(name);
    ASSERT_TRUE(directory.ok()) << directory.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(*directory, "session.json"), "{\"name\":\"" + name + "\"}").ok());
    sessionpb::SessionEnd end;
    end.set_kind(sessionpb::SessionEnd::EXITED);
    end.set_exit_code(7);
    ASSERT_TRUE(WriteSessionEnd(*directory, end).ok());
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

TEST_F(SessionRegistryTest, ANameInUseIsRefusedWithTheWayOut) {
  SessionRegistry sessions(root_);
  MakeEnded(sessions, "db");
  EXPECT_EQ(sessions.Create("db").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(sessions.Create("db").status().message(), HasSubstr("still rm db"));
  auto alive = ListenUnix(JoinPath(sessions.Directory("db"), "control.sock"));
  ASSERT_TRUE(alive.ok());
  EXPECT_THAT(sessions.Create("db").status().message(), HasSubstr("is running"));
  EXPECT_EQ(sessions.Remove("db").code(), absl::StatusCode::kFailedPrecondition);
  alive->Reset();
  EXPECT_TRUE(sessions.Remove("db").ok());
  EXPECT_TRUE(sessions.Create("db").ok());
}

}  // namespace
}  // namespace still::session
