// CalendarExpression against systemd itself, on expressions from its manual, on the days that change the clock, and on
// expressions made at random.
#include "schedule/calendar.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

using ::testing::HasSubstr;

absl::Time Utc(absl::string_view text) {
  absl::Time time;
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d %H:%M:%E*S", text, absl::UTCTimeZone(), &time, &error)) << error;
  return time;
}

std::vector<std::string> Ours(absl::string_view expression, absl::Time from, int count) {
  absl::StatusOr<CalendarExpression> parsed = CalendarExpression::Parse(expression);
  if (!parsed.ok()) return {"invalid"};
  std::vector<std::string> times;
  std::optional<absl::Time> at = from;
  for (int i = 0; i < count; ++i) {
    at = parsed->Next(*at, absl::UTCTimeZone());
    if (!at.has_value()) break;
    times.push_back(absl::FormatTime("%Y-%m-%d %H:%M:%S", *at, absl::UTCTimeZone()));
  }
  return times;
}

// The times that `systemd-analyze calendar` prints; it needs no running systemd.
std::vector<std::string> Theirs(const std::string& expression, absl::Time from, int count) {
  absl::StatusOr<CommandOutput> output = RunCommand(
      {.argv = {"systemd-analyze", "calendar", absl::StrCat("--iterations=", count),
                absl::StrCat("--base-time=", absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", from, absl::UTCTimeZone())),
                "--", expression},
       .environment = {{"TZ", "UTC"}, {"LC_ALL", "C"}}},
      absl::Seconds(20));
  EXPECT_TRUE(output.ok()) << output.status();
  if (!output.ok()) return {};
  if (!output->exit.ok()) return {"invalid"};
  std::vector<std::string> times;
  for (absl::string_view line : absl::StrSplit(output->stdout_text, '\n')) {
    // "    Next elapse: Sun 2026-11-22 23:00:00 UTC", "       Iter. #2: Sun ..."; systemd 257 writes "   Iteration #2: Sun ...".
    const bool is_time = absl::StrContains(line, "Next elapse: ") || absl::StrContains(line, "Iter. #") ||
                         absl::StrContains(line, "Iteration #");
    if (!is_time || absl::StrContains(line, "never")) continue;
    std::vector<std::string> words = absl::StrSplit(line.substr(line.find(": ") + 2), ' ');
    if (words.size() >= 3) times.push_back(absl::StrCat(words[1], " ", words[2]));
  }
  return times;
}

class SystemdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<CommandOutput> version = RunCommand({.argv = {"systemd-analyze", "--version"}}, absl::Seconds(20));
    if (!version.ok() || !version->exit.ok()) GTEST_SKIP() << "there is no systemd-analyze here";
  }
  static void ExpectSame(const std::string& expression, absl::Time from) {
    EXPECT_EQ(Ours(expression, from, 6), Theirs(expression, from, 6))
        << "\"" << expression << "\" from " << absl::FormatTime(from, absl::UTCTimeZone());
  }
};

TEST_F(SystemdTest, AgreesOnWhatTheManualShows) {
  for (const char* expression : {"Sat,Thu,Mon..Wed,Sat..Sun",
                                 "Mon,Sun 12-*-* 2,1:23",
                                 "Wed *-1",
                                 "Wed..Wed,Wed *-1",
                                 "Wed, 17:48",
                                 "Wed..Sat,Tue 12-10-15 1:2:3",
                                 "*-*-7 0:0:0",
                                 "10-15",
                                 "monday *-12-* 17:00",
                                 "Mon,Fri *-*-3,1,2 *:30:45",
                                 "12,14,13,12:20,10,30",
                                 "12..14:10,20,30",
                                 "mon,fri *-1/2-1,3 *:30:45",
                                 "03-05 08:05:40",
                                 "08:05:40",
                                 "05:40",
                                 "Sat,Sun 12-05 08:05:40",
                                 "Sat,Sun 08:05:40",
                                 "2003-03-05 05:40",
                                 "05:40:23.4200004/3.1700005",
                                 "2003-02..04-05",
                                 "2003-03-05 05:40 UTC",
                                 "2003-03-05",
                                 "03-05",
                                 "hourly",
                                 "daily",
                                 "daily UTC",
                                 "monthly",
                                 "weekly",
                                 "weekly Pacific/Auckland",
                                 "yearly",
                                 "annually",
                                 "*:2/3",
                                 "*-*~1",
                                 "*-2~3",
                                 "*-05~07/1",
                                 "*-*-* 4..6/2:0"}) {
    ExpectSame(expression, Utc("2026-01-15 12:34:56"));
    ExpectSame(expression, Utc("2003-01-01 00:00:00"));
  }
}

TEST_F(SystemdTest, AgreesOnWhatIsWrong) {
  for (const char* expression : {"10",
                                 "*",
                                 "Fri..Mon",
                                 "*:*:*/0.7",
                                 "5..3:00",
                                 "*-*-*/3",
                                 "00/2",
                                 "1..5..6",
                                 "*-13-1",
                                 "*:60",
                                 "*:0/0",
                                 "*-*-* 24:00",
                                 "Foo",
                                 "Mon, Tue",
                                 "1:2:3:4",
                                 "  daily",
                                 "daily  UTC",
                                 "daily Nowhere/Atall",
                                 "*-*-0",
                                 "*:*:60",
                                 "Mon..",
                                 "..Mon",
                                 "*-~1",
                                 "~1",
                                 "1,:00",
                                 "*-*-1..40",
                                 "*-*-5..5",
                                 "@x",
                                 "1.5:00",
                                 "*:0/60",
                                 "99999999999:00"}) {
    ExpectSame(expression, Utc("2026-01-15 12:34:56"));
  }
  EXPECT_THAT(CalendarExpression::Parse("*-13-1").status().message(), HasSubstr("month"));
}

TEST_F(SystemdTest, AgreesOnTheDaysThatChangeTheClock) {
  for (const char* zone : {"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"}) {
    for (const char* expression : {"*-*-* 02:30", "*-*-* 00:30", "*:0/20", "hourly", "*-*-* 2..3:15/30", "daily"}) {
      for (const char* from :
           {"2026-03-28 22:10:00", "2026-10-24 22:10:00", "2026-03-08 03:00:00", "2026-11-01 03:30:00",
            "2026-04-04 13:00:00", "2026-10-03 13:00:00", "2018-11-04 01:00:00"}) {
        ExpectSame(absl::StrCat(expression, " ", zone), Utc(from));
      }
    }
  }
}

TEST_F(SystemdTest, AgreesOnRandomExpressions) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 random(seed);
  auto up_to = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  auto component = [&](int low, int high) -> std::string {
    std::string text;
    for (int parts = 1 + up_to(2); parts > 0; --parts) {
      int a = low + up_to(high - low);
      absl::StrAppend(&text, text.empty() ? "" : ",", a);
      if (up_to(3) == 0) absl::StrAppend(&text, "..", a + 1 + up_to(high - a));
      if (up_to(3) == 0) absl::StrAppend(&text, "/", 1 + up_to(4));
    }
    return up_to(3) == 0 ? "*" : text;
  };
  for (int i = 0; i < 120; ++i) {
    std::string expression;
    if (up_to(3) == 0) expression = up_to(2) == 0 ? "Mon..Thu " : "Tue,Sat ";
    absl::StrAppend(&expression, up_to(3) == 0 ? component(2024, 2034) : "*", "-", component(1, 12),
                    up_to(5) == 0 ? absl::StrCat("~", 1 + up_to(20)) : absl::StrCat("-", component(1, 28)), " ",
                    component(0, 23), ":", component(0, 59), up_to(2) == 0 ? "" : absl::StrCat(":", component(0, 59)));
    ExpectSame(expression, Utc("2026-01-15 12:34:56") + absl::Hours(up_to(20000)));
  }
}

TEST(CalendarTest, ATimeThatNeverComesIsNever) {
  EXPECT_EQ(Ours("2026-02-30", Utc("2026-01-01 00:00:00"), 1), std::vector<std::string>{});
  EXPECT_EQ(Ours("*-02-29", Utc("2026-01-01 00:00:00"), 1), std::vector<std::string>{"2028-02-29 00:00:00"});
}

TEST(CalendarTest, InTheHourThatComesTwiceItGoesForwardOnly) {
  // 2026-10-25, Berlin: 02:10 for the second time is 01:10 UTC.
  EXPECT_EQ(Ours("*:0/30 Europe/Berlin", Utc("2026-10-25 01:10:00"), 1),
            std::vector<std::string>{"2026-10-25 02:00:00"});
}

}  // namespace
}  // namespace still::schedule
