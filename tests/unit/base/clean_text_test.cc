#include "base/clean_text.h"

#include <string>

#include "gtest/gtest.h"

namespace still {
namespace {

constexpr size_t kLimit = 64;

TEST(CleanText, TextOfAnyLanguageStaysAsItIs) {
  for (const char* text : {"", "/var/lib", "a\\x1b", "Grüße, 世界, नमस्ते, 🙂", "50% \"x\""}) {
    EXPECT_EQ(CleanText(text, kLimit), text);
  }
}

TEST(CleanText, NothingThatDrivesATerminalIsLeft) {
  EXPECT_EQ(CleanText("\x1b[2Jgone", kLimit), "\\x1b[2Jgone");
  EXPECT_EQ(CleanText("a\nb\r\tc\x7f", kLimit), "a\\nb\\r\\tc\\x7f");
  EXPECT_EQ(CleanText("\xc2\x9b"
                      "31m",
                      kLimit),
            "\\xc2\\x9b31m")
      << "CSI as a C1 character";
  EXPECT_EQ(CleanText("\xe2\x80\xae"
                      "fdp",
                      kLimit),
            "\\xe2\\x80\\xae"
            "fdp")
      << "right-to-left override";
  EXPECT_EQ(CleanText("\xe2\x80\xa8", kLimit), "\\xe2\\x80\\xa8") << "line separator";
  EXPECT_EQ(CleanText(std::string("a\0b", 3), kLimit), "a\\x00b");
}

TEST(CleanText, WhatIsNoUtf8IsEscapedByteByByte) {
  EXPECT_EQ(CleanText("/mnt/\xff\xfe/x", kLimit), "/mnt/\\xff\\xfe/x");
  EXPECT_EQ(CleanText("\xc0\x80", kLimit), "\\xc0\\x80") << "an overlong zero";
  EXPECT_EQ(CleanText("\xed\xa0\x80", kLimit), "\\xed\\xa0\\x80") << "a surrogate";
  EXPECT_EQ(CleanText("\xf4\x90\x80\x80", kLimit), "\\xf4\\x90\\x80\\x80") << "beyond Unicode";
  EXPECT_EQ(CleanText("\xe4\xb8", kLimit), "\\xe4\\xb8") << "cut off";
}

TEST(CleanText, WhatIsTooLongIsCutBetweenCharacters) {
  EXPECT_EQ(CleanText("12345678", 8), "12345678");
  EXPECT_EQ(CleanText("123456789", 8), "12345...");
  EXPECT_EQ(CleanText("äöüäöü", 8), "äö...");
  EXPECT_EQ(CleanText("\x1b\x1b\x1b", 8), "\\x1b...");
}

TEST(CleanText, TwiceIsOnce) {
  uint32_t state = 1;
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 40; ++i) {
      state = state * 1664525 + 1013904223;
      text += static_cast<char>(state >> 24);
    }
    const std::string clean = CleanText(text, kLimit);
    EXPECT_LE(clean.size(), kLimit);
    EXPECT_EQ(CleanText(clean, kLimit), clean);
  }
}

TEST(CleanLinesTest, LinesStayLines) {
  EXPECT_EQ(CleanLines("one\r\n\x1b[2Jtwo\n\nfour", 100), "one\n\\x1b[2Jtwo\n\nfour");
  EXPECT_EQ(CleanLines("", 100), "");
}

}  // namespace
}  // namespace still
