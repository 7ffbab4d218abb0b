// What all commands have in common: names of sessions are resolved before a command runs.
#include "tools/still/context.h"

#include <stdlib.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/still/command_tree.h"
#include "tools/still/each_session.h"

namespace still::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ContextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-context-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    state_ = pattern;
    for (const char* name : {"web", "web-2", "database"}) {
      ASSERT_TRUE(MakeDirectories(JoinPath(state_, std::string("sessions/") + name)).ok());
    }
    context_.AddOptions(app_);
    CLI::App* stop = context_.AddCommand(app_, "stop", "", [this](Context&) {
      ran_ = true;
      return absl::OkStatus();
    });
    stop->add_option("sessions", sessions_)->type_name(kSessionType);
    stop->add_option("--exact", exact_)->type_name(kExactSessionType);
    app_.require_subcommand(1);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(state_).ok()); }
  absl::Status Run(const std::string& line) {
    app_.parse(line + " --state " + state_);
    return context_.RunChosen(app_);
  }

  std::string state_;
  CLI::App app_{"", "still"};
  Context context_;
  std::vector<std::string> sessions_;
  std::string exact_;
  bool ran_ = false;
};

TEST_F(ContextTest, BeginningsOfSessionNamesAreResolvedForTheCommand) {
  ASSERT_TRUE(Run("stop d web-").ok());
  EXPECT_TRUE(ran_);
  EXPECT_THAT(sessions_, ElementsAre("database", "web-2"));
}

// exec and rollback.
TEST_F(ContextTest, ACommandForOneSessionSaysSoOfAPattern) {
  const absl::Status status = Run("stop web*");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("\"web*\" is a pattern, and this command is for one session: write its name"));
  EXPECT_FALSE(ran_);
}

// stop, start, rm, resume, thaw, logs, snapshot and hydrate: as a script has it whose list is of yesterday.
TEST_F(ContextTest, WordsThatMeanNobodyAreToldAndTheOthersAreActedOn) {
  for (const char* name : {"web", "web-2", "database"}) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(state_, std::string("sessions/") + name + "/session.json"), "{}").ok());
  }
  std::vector<std::string> acted_on;
  const OnSession act = [&](const std::string& name) -> absl::StatusOr<Done> {
    if (!PathExists(JoinPath(state_, "sessions/" + name))) return absl::NotFoundError("there is none");
    acted_on.push_back(name);
    if (name == "database") return absl::DataLossError("damaged");
    return Done{name, {{"name", name}}};
  };
  for (const bool beginnings : {true, false}) {
    acted_on.clear();
    ASSERT_TRUE(Run("stop web --json").ok());
    ::testing::internal::CaptureStdout();
    const absl::Status ended =
        WithEachSession(context_, {"web", "nosuch", "x-*", "database", "w*"}, beginnings, /*at_once=*/1, act);
    EXPECT_EQ(nlohmann::json::parse(::testing::internal::GetCapturedStdout()).size(), 2u);
    EXPECT_THAT(acted_on, ElementsAre("web", "database", "web-2"));
    EXPECT_EQ(ended.code(), absl::StatusCode::kDataLoss) << "the highest exit code: " << ended;
    for (const char* word : {"nosuch", "x-*", "database: damaged"}) EXPECT_THAT(ended.message(), HasSubstr(word));
  }
}

TEST_F(ContextTest, JsonIsReadableWhateverBytesItIsOf) {
  ASSERT_TRUE(Run("stop web --json").ok());
  const nlohmann::json json = {
      {"bytes", "caf\xe9"}, {"text", "caf\\xe9 é"}, {"list", {{{"deep", "\xff"}}}}, {"number", 1}};
  ::testing::internal::CaptureStdout();
  context_.Print(json, [] {});
  const nlohmann::json read = nlohmann::json::parse(::testing::internal::GetCapturedStdout());
  const nlohmann::json wanted = {
      {"bytes", "caf\\xe9"}, {"text", "caf\\xe9 é"}, {"list", {{{"deep", "\\xff"}}}}, {"number", 1}};
  EXPECT_EQ(read, wanted);
}

TEST_F(ContextTest, AWholeNameIsItself) {
  ASSERT_TRUE(Run("stop web").ok());
  EXPECT_THAT(sessions_, ElementsAre("web"));
}

TEST_F(ContextTest, TheCommandDoesNotRunForANameThatIsNotClear) {
  absl::Status status = Run("stop we");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("web, web-2"));
  EXPECT_FALSE(ran_);
}

TEST_F(ContextTest, WhatNeedsTheWholeNameIsNotResolved) {
  ASSERT_TRUE(Run("stop --exact d").ok());
  EXPECT_EQ(exact_, "d");
}

}  // namespace
}  // namespace still::cli
