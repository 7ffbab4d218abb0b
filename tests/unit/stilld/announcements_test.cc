// HookAnnouncer: commands that work, fail at first, and the JSON they get. The webhook is tried by stilld_program_test.py.
#include "schedule/announcements.h"

#include <stdlib.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

class AnnouncementsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-announce-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string WaitFor(const std::string& name) {
    for (absl::Duration end = Clock::Real().Monotonic() + absl::Seconds(20); Clock::Real().Monotonic() < end;) {
      absl::StatusOr<std::string> text = ReadFile(JoinPath(dir_, name), 1 << 16);
      if (text.ok() && !text->empty()) return *text;
      Clock::Real().Sleep(absl::Milliseconds(10));
    }
    return "";
  }
  std::string dir_;
};

TEST_F(AnnouncementsTest, TheCommandIsTriedAgainUntilItWorks) {
  const std::string out = JoinPath(dir_, "out");
  const std::string first = JoinPath(dir_, "first");
  HookAnnouncer announcer(
      {.command = absl::StrCat("if [ ! -e ", first, " ]; then touch ", first,
                               "; exit 1; fi; printf '%s' \"$STILL_JSON\" > ", out, ".new && mv ", out, ".new ", out),
       .retry_after = absl::Milliseconds(5)});
  announcer.Announce({.kind = Event::Kind::kStale,
                      .schedule = "nightly",
                      .session = "web",
                      .at = absl::FromUnixSeconds(0),
                      .message = "a \"quoted\" $(word)"});
  auto json = nlohmann::json::parse(WaitFor("out"), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["event"], "stale");
  EXPECT_EQ(json["session"], "web");
  EXPECT_EQ(json["time"], "1970-01-01T00:00:00+00:00");
  EXPECT_EQ(json["message"], "a \"quoted\" $(word)");
}

TEST_F(AnnouncementsTest, AReceiverThatHangsBlocksNobody) {
  const absl::Duration begun = Clock::Real().Monotonic();
  {
    HookAnnouncer announcer({.command = "exit 1", .retry_after = absl::Hours(1)});
    for (int i = 0; i < 2000; ++i) announcer.Announce({.message = "x"});
  }
  EXPECT_LT(Clock::Real().Monotonic() - begun, absl::Minutes(1)) << "its pauses end with it";
}

}  // namespace
}  // namespace still::schedule
