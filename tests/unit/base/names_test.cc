#include "base/names.h"

#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;

TEST(NamesTest, WhatIsUtf8IsStoredAsItIs) {
  for (const char* name : {"disk.img", "caf\xc3\xa9.img", "a b", "C:\\disks\\web", "\xf0\x9f\x92\xbe", ""}) {
    EXPECT_EQ(EscapeName(name), name);
    EXPECT_EQ(UnescapeName(name), name);
  }
}

TEST(NamesTest, WhatIsNotIsEscapedAndComesBack) {
  EXPECT_EQ(EscapeName("caf\xe9.img"), "caf\\xe9.img");
  // What looks like an escape is not taken for one.
  EXPECT_EQ(EscapeName("caf\\xe9.img"), "caf\\x5cxe9.img");
  EXPECT_EQ(UnescapeName("caf\\x5cxe9.img"), "caf\\xe9.img");
}

TEST(NamesTest, AnyBytesComeBackAndAreUtf8Meanwhile) {
  std::mt19937 random(1);
  // Few letters: escapes and halves of them come about by chance.
  const std::string letters = "\\x5cf\xe9\xc3\xa9\x80";
  for (int i = 0; i < 20'000; ++i) {
    std::string name;
    for (uint32_t length = random() % 9; length > 0; --length) name += letters[random() % letters.size()];
    EXPECT_TRUE(IsUtf8(EscapeName(name)));
    ASSERT_EQ(UnescapeName(EscapeName(name)), name);
    EXPECT_TRUE(EscapeName(name) != name || IsUtf8(name));
  }
}

TEST(NamesTest, HalvesSurrogatesAndOverlongFormsAreNoUtf8) {
  for (const char* text : {"\x80", "\xc3", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"}) {
    EXPECT_FALSE(IsUtf8(text)) << EscapeName(text);
  }
}

TEST(NamesTest, NamesThatNoReferenceReachesAreRefusedWithTheReason) {
  for (auto [name, why] : {std::pair<std::string, const char*>{"latest", "means the newest"},
                           {"", "empty"},
                           {"-x", "taken for an option"},
                           {"a:b", ": has a meaning of its own"},
                           {"web@2d", "@ has a meaning of its own"},
                           {"a/b", "/ has a meaning of its own"},
                           {"web*", "* has a meaning of its own"},
                           {"caf\xe9", "not UTF-8"},
                           {"a\nb", "control characters"},
                           {std::string(256, 'a'), "longer than 255"},
                           {std::string(32, 'a'), "looks like an id"}}) {
    absl::Status status = CheckNewName("snapshot", name);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
    EXPECT_TRUE(IsUtf8(status.message()));
  }
}

TEST(NamesTest, OrdinaryNamesAreTaken) {
  for (const char* name : {"before-upgrade", "latest-2", "caf\xc3\xa9 1", "2026-11-29", "deadbeef", "disk.img"}) {
    EXPECT_TRUE(CheckNewName("snapshot", name).ok()) << name;
  }
}

}  // namespace
}  // namespace still
