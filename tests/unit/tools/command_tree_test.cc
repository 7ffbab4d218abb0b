#include "tools/still/command_tree.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/tools/test_commands.h"

namespace still::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

std::string Mistake(const std::string& line) {
  TestCommands commands;
  try {
    commands.app.parse(line);
  } catch (const CLI::ParseError& error) {
    return UsageError(commands.app, error);
  }
  return "parsed";
}

TEST(CommandTreeTest, SaysWhatTheParserKnows) {
  TestCommands commands;
  const CommandSpec root = DescribeCommands(commands.app);
  const CommandSpec* take = root.FindCommand("snapshot");
  ASSERT_NE(take, nullptr);
  EXPECT_EQ(take->path, "still snapshot");
  ASSERT_EQ(take->positionals.size(), 1u);
  EXPECT_EQ(take->positionals[0].value.type, kSessionType);
  EXPECT_TRUE(take->positionals[0].required);
  const OptionSpec* quiesce = take->FindOption("--quiesce");
  ASSERT_NE(quiesce, nullptr);
  EXPECT_THAT(quiesce->value.choices, ElementsAre("require", "try", "off"));
  EXPECT_EQ(quiesce->default_text, "try");
  EXPECT_TRUE(quiesce->takes_value);
  EXPECT_TRUE(take->FindOption("--label")->repeats);
  const OptionSpec* json = root.FindOption("-j");
  ASSERT_NE(json, nullptr);
  EXPECT_FALSE(json->takes_value);
  EXPECT_THAT(json->names, ElementsAre("--json", "-j"));
  EXPECT_EQ(root.FindCommand("key")->FindCommand("add")->path, "still key add");
}

TEST(CommandTreeTest, HiddenThingsStayHidden) {
  TestCommands commands;
  const CommandSpec root = DescribeCommands(commands.app);
  EXPECT_EQ(root.FindCommand("__hidden"), nullptr);
  EXPECT_EQ(root.FindOption("--secret"), nullptr);
}

TEST(UsageErrorTest, MistypedCommandsAndOptionsGetASuggestion) {
  EXPECT_EQ(Mistake("snapshto web"), "no command \"snapshto\"; did you mean \"snapshot\"? (still --help)");
  EXPECT_EQ(Mistake("key ad"), "no command \"ad\"; did you mean \"add\"? (still key --help)");
  EXPECT_EQ(Mistake("snapshot web --quisce off"),
            "no option --quisce; did you mean \"--quiesce\"? (still snapshot --help)");
  EXPECT_EQ(Mistake("snapshot web --jsno"), "no option --jsno; did you mean \"--json\"? (still snapshot --help)")
      << "options of all commands count, too";
  EXPECT_THAT(Mistake("snapshot web --quisce=off"), HasSubstr("\"--quiesce\""));
}

TEST(UsageErrorTest, OtherMistakesAreNamedAndHiddenThingsNotSuggested) {
  EXPECT_EQ(Mistake(""), "which command? (still --help)");
  EXPECT_EQ(Mistake("key"), "which command? (still key --help)");
  EXPECT_THAT(Mistake("__hiden"), Not(HasSubstr("did you mean")));
  EXPECT_EQ(Mistake("snapshot web db"), "\"db\" is one argument too many (still snapshot --help)");
  EXPECT_THAT(Mistake("snapshot"), HasSubstr("session is required (still snapshot --help)"));
  EXPECT_THAT(Mistake("snapshot web --quiesce maybe"), HasSubstr("maybe not in {require,try,off}"));
}

}  // namespace
}  // namespace still::cli
