#include "tools/still/table.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/still/format.h"

namespace still::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Table Sessions() {
  Table table({"NAME", "STATE"});
  table.Add({"web", {"running", Tone::kGood}});
  table.Add({"database", "-"});
  return table;
}

// What fits no line of `width` columns.
std::vector<std::string> TooWide(const std::string& text, size_t width) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  lines.erase(std::remove_if(lines.begin(), lines.end(), [&](const auto& line) { return DisplayWidth(line) <= width; }),
              lines.end());
  return lines;
}

TEST(TableTest, ColumnsAreAsWideAsTheirWidestCellAndLinesEndWithoutBlanks) {
  EXPECT_EQ(Sessions().Render({}), "NAME      STATE\nweb       running\ndatabase  -\n");
}

TEST(TableTest, EmptyCellsAndShortRowsKeepTheColumns) {
  Table table;
  table.Add({"a", "", "c"});
  table.Add({"", "b"});
  EXPECT_EQ(table.Render({}), "a     c\n   b\n");
  EXPECT_EQ(Table().Render({.width = 10, .colour = true}), "");
}

TEST(TableTest, ColoursEncloseTheTextOnlyAndAreOffByDefault) {
  EXPECT_THAT(Sessions().Render({.colour = true}), HasSubstr("web       \x1b[32mrunning\x1b[0m\n"));
  EXPECT_THAT(Sessions().Render({.colour = true}), HasSubstr("\x1b[1mNAME\x1b[0m"));
  EXPECT_THAT(Sessions().Render({}), Not(HasSubstr("\x1b")));
}

TEST(TableTest, ControlCharactersOfNamesDoNotReachTheTerminal) {
  Table table;
  table.Add({"a\x1b[2Jb\n", "x"});
  EXPECT_EQ(table.Render({.colour = true}), "a\\x1b[2Jb\\n  x\n");
}

TEST(TableTest, WideColumnsAreCutFirst) {
  Table table({"ID", "NAME", "SESSION"});
  table.Add({"0123456789ab", "a-name-that-somebody-made-far-too-long", "web"});
  const std::string narrow = table.Render({.width = 40});
  EXPECT_THAT(TooWide(narrow, 40), ::testing::IsEmpty()) << narrow;
  EXPECT_THAT(narrow, HasSubstr("0123456789ab  a-name"));
  EXPECT_THAT(narrow, HasSubstr("…"));
  EXPECT_EQ(table.Render({.width = 200}), table.Render({})) << "nothing is cut without need";
}

TEST(TableTest, ProseInTheLastColumnGoesOnInTheNextLine) {
  Table table;
  table.Add({"vsock", "note", "the user-space device is preloaded into QEMU, which is slower but means the same"});
  const std::string text = table.Render({.width = 40});
  EXPECT_THAT(TooWide(text, 40), ::testing::IsEmpty()) << text;
  EXPECT_THAT(text, Not(HasSubstr("…"))) << "nothing of it is lost";
  std::vector<std::string> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  ASSERT_GT(lines.size(), 2u);
  EXPECT_EQ(lines[1].find_first_not_of(' '), lines[0].find("the user"));
}

TEST(TableTest, EveryWidthGivesEveryRowAndNoWideLine) {
  Table table({"NAME", "KIND", "WHAT"});
  table.Add({"a-rather-long-name", "disk+memory", "several words, among_them_one_that_is_very_long_indeed, and more"});
  for (size_t width = 24; width < 130; ++width) {
    const std::string text = table.Render({.width = width});
    EXPECT_THAT(TooWide(text, width), ::testing::IsEmpty()) << width << "\n" << text;
    EXPECT_THAT(text, HasSubstr("a-rat")) << width;
  }
  EXPECT_FALSE(table.Render({.width = 1}).empty()) << "narrower than possible is shown all the same";
}

TEST(TableTest, LettersOfSeveralBytesTakeOneColumnAndAreCutWhole) {
  EXPECT_EQ(DisplayWidth("größe"), 5u);
  Table table;
  table.Add({"größe", "x"});
  table.Add({"12345", "y"});
  EXPECT_EQ(table.Render({}), "größe  x\n12345  y\n");
  Table narrow({"A", "B"});
  narrow.Add({"ööööööööööööööööööööö", "y"});
  EXPECT_EQ(narrow.Render({.width = 12}), "A          B\nöööööööö…  y\n");
}

TEST(TableTest, WhatIsNoTerminalHasNeitherWidthNorColour) {
  absl::StatusOr<OwnedFd> null = OpenFile("/dev/null", O_WRONLY);
  ASSERT_TRUE(null.ok());
  const TableStyle style = TableStyle::Of(null->get());
  EXPECT_EQ(style.width, 0u);
  EXPECT_FALSE(style.colour);
}

// A pseudo-terminal, as wide as asked.
class TerminalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    master_ = OwnedFd(::posix_openpt(O_RDWR | O_NOCTTY));
    ASSERT_TRUE(master_.valid());
    ASSERT_EQ(::grantpt(master_.get()), 0);
    ASSERT_EQ(::unlockpt(master_.get()), 0);
    slave_ = OwnedFd(::open(::ptsname(master_.get()), O_RDWR | O_NOCTTY));
    ASSERT_TRUE(slave_.valid());
    ::unsetenv("NO_COLOR");
    ::unsetenv("COLUMNS");
    ::setenv("TERM", "xterm", 1);
  }
  OwnedFd master_;
  OwnedFd slave_;
};

TEST_F(TerminalTest, ColourUnlessTheUserOrTheTerminalRefusesIt) {
  EXPECT_TRUE(TableStyle::Of(slave_.get()).colour);
  ::setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(TableStyle::Of(slave_.get()).colour);
  ::setenv("NO_COLOR", "", 1);
  EXPECT_TRUE(TableStyle::Of(slave_.get()).colour) << "empty counts as not set";
  ::setenv("TERM", "dumb", 1);
  EXPECT_FALSE(TableStyle::Of(slave_.get()).colour);
}

TEST_F(TerminalTest, TheWidthIsTheTerminalsOrTheUsers) {
  winsize size{.ws_row = 24, .ws_col = 97};
  ASSERT_EQ(::ioctl(slave_.get(), TIOCSWINSZ, &size), 0);
  EXPECT_EQ(TableStyle::Of(slave_.get()).width, 97u);
  ::setenv("COLUMNS", "60", 1);
  EXPECT_EQ(TableStyle::Of(slave_.get()).width, 60u);
}

TEST(FormatSecondsTest, ReadsLikeAnEstimate) {
  EXPECT_EQ(FormatSeconds(0.2), "0 s");
  EXPECT_EQ(FormatSeconds(59.4), "59 s");
  EXPECT_EQ(FormatSeconds(200), "3m20s");
  EXPECT_EQ(FormatSeconds(3600 * 5 + 60 * 7), "5h07m");
  EXPECT_EQ(FormatSeconds(1e300), "ages");
}

}  // namespace
}  // namespace still::cli
