#include "base/name_match.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kNames = {"db", "web", "web-2", "web-3", "nightly"};

TEST(NameMatchTest, ANameGoesBeforeThoseThatBeginWithIt) { EXPECT_EQ(*ResolveName("session", "web", kNames), "web"); }

TEST(NameMatchTest, AUniqueBeginningIsEnough) {
  EXPECT_EQ(*ResolveName("session", "n", kNames), "nightly");
  EXPECT_EQ(*ResolveName("session", "web-3", kNames), "web-3");
}

TEST(NameMatchTest, AnAmbiguousBeginningListsTheCandidates) {
  absl::Status status = ResolveName("session", "web-", kNames).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("web-2, web-3"));
  EXPECT_THAT(status.message(), Not(HasSubstr("web,")));
}

TEST(NameMatchTest, MistypedNamesGetASuggestion) {
  for (const char* typed : {"nigthly", "nightyl", "ightly", "nightlyy", "nigjtly"}) {
    absl::Status status = ResolveName("snapshot", typed, kNames).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(status.message(), HasSubstr("did you mean \"nightly\"?")) << typed;
  }
}

TEST(NameMatchTest, WhatIsFarFromEverythingGetsTheListInstead) {
  absl::Status status = ResolveName("session", "production", kNames).status();
  EXPECT_THAT(status.message(), HasSubstr("no session \"production\"; there are: db, "));
  EXPECT_EQ(ResolveName("session", "x", {}).status().message(), "no session \"x\"; there is none");
}

TEST(NameMatchTest, OneLetterAndNoneSuggestNothing) {
  EXPECT_EQ(NearestName("x", kNames), "");
  EXPECT_EQ(NearestName("", kNames), "");
  EXPECT_EQ(ResolveName("session", "", kNames).status().code(), absl::StatusCode::kNotFound)
      << "nothing is no beginning of everything";
}

TEST(NameMatchTest, TheNearestOfSeveralIsTaken) {
  EXPECT_EQ(NearestName("web-33", kNames), "web-3");
  EXPECT_EQ(NearestName("wbe", kNames), "web");
}

TEST(NameMatchTest, LongListsAreCutAndOddNamesEscaped) {
  EXPECT_EQ(ListSome({"a", "b"}), "a, b");
  EXPECT_EQ(ListSome({"1", "2", "3", "4", "5", "6", "7", "8"}), "1, 2, 3, 4, 5, 6 and 2 more");
  EXPECT_EQ(ListSome({std::string("\x1b[2J")}), "\\x1b[2J");
}

TEST(NameMatchTest, VeryLongNamesCostNothing) {
  const std::string longest(1 << 20, 'a');
  EXPECT_EQ(NearestName(longest, kNames), "");
  EXPECT_EQ(NearestName("aaaa", {longest}), "");
}

}  // namespace
}  // namespace still
