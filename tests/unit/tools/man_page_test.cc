#include "tools/still/man_page.h"

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/tools/test_commands.h"

namespace still::cli {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::Not;

class ManPageTest : public ::testing::Test {
 protected:
  ManPageTest() {
    commands_.app.footer(CommonSections());
    pages_ = ManPages(DescribeCommands(commands_.app), "1.2.3", "2026-11-21");
  }
  TestCommands commands_;
  std::map<std::string, std::string> pages_;
};

TEST_F(ManPageTest, ThereIsOneForEveryCommandButNotForHiddenOnes) {
  for (const char* name : {"still.1", "still-snapshot.1", "still-key.1", "still-key-add.1"}) {
    EXPECT_THAT(pages_, Contains(Key(name)));
  }
  EXPECT_EQ(pages_.size(), 7u);
}

TEST_F(ManPageTest, SaysWhatHelpSays) {
  const std::string& page = pages_["still-snapshot.1"];
  EXPECT_THAT(page, HasSubstr(".TH STILL\\-SNAPSHOT 1 \"2026-11-21\" \"Stillpoint 1.2.3\""));
  EXPECT_THAT(page, HasSubstr("still\\-snapshot \\- Take a snapshot\n"));
  EXPECT_THAT(page, HasSubstr("\\fB\\-\\-quiesce\\fR \\fIrequire|try|off\\fR\nHow (default: try)"));
  EXPECT_THAT(page, HasSubstr("OPTIONS OF ALL COMMANDS"));
  EXPECT_THAT(page, HasSubstr("\\fB\\-\\-json\\fR"));
  EXPECT_THAT(page, HasSubstr("\\fBstill\\fR(1)"));
  EXPECT_THAT(pages_["still.1"], HasSubstr("\\fBstill\\-key\\fR(1)"));
}

TEST_F(ManPageTest, EnvironmentAndExitCodesAreListed) {
  EXPECT_THAT(pages_["still.1"], HasSubstr(".SH EXIT STATUS\n"));
  EXPECT_THAT(pages_["still.1"], HasSubstr("\\fBSTILL_PASSPHRASE\\fR\nOpens an encrypted repository"));
}

TEST_F(ManPageTest, NoLineOfTextIsTakenForARequest) {
  const std::string& page = pages_["still-export.1"];
  EXPECT_THAT(page, HasSubstr("\n\\&.hidden files, too, with \\e and \\-\n"));
  for (const auto& [name, text] : pages_) {
    for (absl::string_view line : absl::StrSplit(text, '\n')) {
      if (!absl::StartsWith(line, ".")) continue;
      EXPECT_TRUE(absl::StartsWith(line, ".TH ") || absl::StartsWith(line, ".SH ") || line == ".TP") << line;
    }
  }
}

TEST_F(ManPageTest, TheNameLineHasNoFullStop) {
  EXPECT_THAT(pages_["still.1"], HasSubstr("still \\- Consistent snapshots\n"));
}

}  // namespace
}  // namespace still::cli
