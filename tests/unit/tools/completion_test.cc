#include "tools/still/completion.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/tools/test_commands.h"

namespace still::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class CompletionTest : public ::testing::Test {
 protected:
  Completion Run(const std::vector<std::string>& words) {
    return Complete(DescribeCommands(commands_.app), words,
                    [](const std::string& type) -> std::vector<Completion::Candidate> {
                      if (type == kSessionType) return {{"web", "running"}, {"db", "ended"}};
                      if (type == kSnapshotType) return {{"nightly", ""}, {"web@latest", ""}};
                      return {};
                    });
  }
  std::vector<std::string> Words(const std::vector<std::string>& words) {
    std::vector<std::string> found;
    for (const Completion::Candidate& candidate : Run(words).candidates) found.push_back(candidate.word);
    return found;
  }
  TestCommands commands_;
};

TEST_F(CompletionTest, CommandsFirst) {
  EXPECT_THAT(Words({""}), UnorderedElementsAre("snapshot", "forget", "export", "key"));
  EXPECT_THAT(Words({}), UnorderedElementsAre("snapshot", "forget", "export", "key"));
  EXPECT_THAT(Words({"s"}), ElementsAre("snapshot"));
  EXPECT_THAT(Words({"key", ""}), ElementsAre("add", "list"));
  EXPECT_THAT(Words({"--json", "key", "l"}), ElementsAre("list"));
  EXPECT_EQ(Run({"s"}).candidates[0].description, "Take a snapshot");
}

TEST_F(CompletionTest, NamesOfSessionsAndSnapshots) {
  EXPECT_THAT(Words({"snapshot", ""}), ElementsAre("web", "db"));
  EXPECT_THAT(Words({"snapshot", "w"}), ElementsAre("web"));
  EXPECT_THAT(Words({"snapshot", "web", ""}), IsEmpty()) << "there is one session";
  EXPECT_THAT(Words({"forget", "nightly", "w"}), ElementsAre("web@latest")) << "there may be many snapshots";
}

TEST_F(CompletionTest, OptionsOfTheCommandAndOfAll) {
  EXPECT_THAT(Words({"snapshot", "--"}), UnorderedElementsAre("--help", "--quiesce", "--label", "--state", "--json"));
  EXPECT_THAT(Words({"snapshot", "web", "--q"}), ElementsAre("--quiesce"));
  EXPECT_THAT(Words({"--s"}), ElementsAre("--state"));
}

TEST_F(CompletionTest, ValuesOfOptions) {
  EXPECT_THAT(Words({"snapshot", "--quiesce", ""}), ElementsAre("require", "try", "off"));
  EXPECT_THAT(Words({"snapshot", "--quiesce", "t"}), ElementsAre("try"));
  EXPECT_THAT(Words({"snapshot", "--quiesce=r"}), ElementsAre("--quiesce=require"));
  EXPECT_THAT(Words({"snapshot", "--quiesce", "try", ""}), ElementsAre("web", "db")) << "a value is no argument";
  EXPECT_THAT(Words({"snapshot", "--label", ""}), IsEmpty());
  EXPECT_TRUE(Run({"--state", ""}).directories);
}

TEST_F(CompletionTest, FilesAreLeftToTheShell) {
  EXPECT_FALSE(Run({"export", ""}).files);
  const Completion file = Run({"export", "nightly", ""});
  EXPECT_TRUE(file.files);
  EXPECT_FALSE(file.directories);
  EXPECT_THAT(file.candidates, IsEmpty());
}

TEST_F(CompletionTest, BehindTwoDashesEverythingIsAnArgument) {
  EXPECT_THAT(Words({"snapshot", "--", "-"}), IsEmpty());
  EXPECT_THAT(Words({"snapshot", "--", "w"}), ElementsAre("web"));
}

TEST_F(CompletionTest, NonsenseIsAnsweredWithLittle) {
  EXPECT_THAT(Words({"nonsense", ""}), IsEmpty());
  EXPECT_THAT(Words({"snapshot", "--nonsense", "w"}), ElementsAre("web"));
  EXPECT_THAT(Words({"snapshot", "--nonsense="}), IsEmpty());
}

TEST(CompletionScriptTest, ThreeShells) {
  for (const char* shell : {"bash", "zsh", "fish"}) EXPECT_TRUE(CompletionScript(shell).ok()) << shell;
  EXPECT_EQ(CompletionScript("csh").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace still::cli
