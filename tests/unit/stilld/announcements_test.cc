// HookAnnouncer: what commands and mails get, and which outcome is told. The webhook is tried by stilld_program_test.py.
#include "schedule/announcements.h"

#include <stdlib.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class AnnouncementsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-announce-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string dir_;

  // Whether each of so many deliveries arrived, in the order of their ends.
  static std::vector<bool> Outcomes(HookAnnouncer& announcer, size_t count) {
    std::vector<bool> delivered;
    for (absl::Duration end = Clock::Real().Monotonic() + absl::Seconds(60);
         delivered.size() < count && Clock::Real().Monotonic() < end;) {
      for (const Announcer::Outcome& outcome : announcer.TakeOutcomes()) delivered.push_back(outcome.delivered);
      Clock::Real().Sleep(absl::Milliseconds(5));
    }
    return delivered;
  }
  static Event Stale() {
    return {.kind = Event::Kind::kStale,
            .schedule = "nightly",
            .session = "web",
            .at = absl::FromUnixSeconds(0),
            .message = "a \"quoted\" $(word)\nBcc: all@example.org"};
  }
  std::string Script(const std::string& text) {
    const std::string path = JoinPath(dir_, "script");
    EXPECT_TRUE(WriteFileAtomically(path, absl::StrCat("#!/bin/sh\n", text, "\n"), 0700).ok());
    return path;
  }
};

TEST_F(AnnouncementsTest, WhoeverTellsOnceLearnsWhatCameOfItOnEachChannel) {
  const auto arrived = [](const AnnouncerOptions& options) {
    std::map<std::string, bool> by_channel;
    for (const Announcer::Outcome& outcome : TellOnce(options, Stale()))
      by_channel[outcome.channel] = outcome.delivered;
    return by_channel;
  };
  using Arrived = std::map<std::string, bool>;
  EXPECT_EQ(arrived({.command = "exit 0", .mail_to = "root", .sendmail = Script("exit 1")}),
            (Arrived{{"command", true}, {"mail", false}}));
  EXPECT_EQ(arrived({}), (Arrived{{"journal", true}}));
}

TEST_F(AnnouncementsTest, ACommandGetsTheEventAndItsEndSaysWhetherItArrived) {
  const std::string out = JoinPath(dir_, "out");
  HookAnnouncer announcer({.command = absl::StrCat("[ -e ", dir_, "/ready ] && printf '%s' \"$STILL_JSON\" > ", out)});
  ASSERT_THAT(announcer.Channels(), ElementsAre("command"));
  announcer.Deliver({.key = "key", .channel = "command", .event = Stale()});
  EXPECT_THAT(Outcomes(announcer, 1), ElementsAre(false));
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "ready"), "").ok());
  announcer.Deliver({.key = "key", .channel = "command", .event = Stale()});
  EXPECT_THAT(Outcomes(announcer, 1), ElementsAre(true));
  auto json = nlohmann::json::parse(*ReadFile(out, 1 << 16), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json["event"], "stale");
  EXPECT_EQ(json["session"], "web");
  EXPECT_EQ(json["time"], "1970-01-01T00:00:00+00:00");
  EXPECT_EQ(json["message"], Stale().message);
}

TEST_F(AnnouncementsTest, MailGoesThroughSendmailAndHeadersHoldNothingOfOthers) {
  HookAnnouncer announcer({.mail_to = "root@example.org", .sendmail = Script(absl::StrCat("cat > ", dir_, "/mail"))});
  announcer.Deliver({.key = "key", .channel = "mail", .event = Stale()});
  EXPECT_THAT(Outcomes(announcer, 1), ElementsAre(true));
  const std::string mail = *ReadFile(JoinPath(dir_, "mail"), 1 << 16);
  const std::string headers = mail.substr(0, mail.find("\n\n"));
  EXPECT_THAT(headers, HasSubstr("To: root@example.org\n"));
  EXPECT_THAT(headers, HasSubstr("stale web"));
  EXPECT_THAT(headers, Not(HasSubstr("Bcc")));
  EXPECT_THAT(mail, HasSubstr("a \"quoted\" $(word)"));
  Event evil = Stale();
  evil.session = "web\nBcc: all@example.org";
  EXPECT_THAT(EventMail(evil, "root"), Not(HasSubstr("\nBcc: all@example.org\nMIME")));
}

TEST_F(AnnouncementsTest, WithoutAChannelTheJournalIsTold) {
  HookAnnouncer announcer({});
  ASSERT_THAT(announcer.Channels(), ElementsAre("journal"));
  announcer.Deliver({.key = "key", .channel = "journal", .event = Stale()});
  EXPECT_THAT(Outcomes(announcer, 1), ElementsAre(true));
}

TEST_F(AnnouncementsTest, AChannelThatHangsHoldsUpNeitherTheOthersNorUs) {
  const absl::Duration begun = Clock::Real().Monotonic();
  {
    HookAnnouncer announcer({.command = "sleep 20", .mail_to = "root", .sendmail = Script("cat > /dev/null")});
    for (int i = 0; i < 2000; ++i) announcer.Deliver({.key = "key", .channel = "command", .event = {}});
    EXPECT_LT(Clock::Real().Monotonic() - begun, absl::Seconds(15));
    announcer.Deliver({.key = "other", .channel = "mail", .event = {}});
    bool mailed = false;
    for (absl::Duration end = Clock::Real().Monotonic() + absl::Seconds(60);
         !mailed && Clock::Real().Monotonic() < end;) {
      for (const Announcer::Outcome& outcome : announcer.TakeOutcomes()) mailed |= outcome.channel == "mail";
      Clock::Real().Sleep(absl::Milliseconds(5));
    }
    EXPECT_TRUE(mailed);
  }
  EXPECT_LT(Clock::Real().Monotonic() - begun, absl::Minutes(2)) << "what waits is left to whoever comes next";
}

}  // namespace
}  // namespace still::schedule
