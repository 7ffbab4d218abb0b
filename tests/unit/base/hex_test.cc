#include "base/hex.h"

#include "gtest/gtest.h"

namespace still {
namespace {

TEST(HexTest, PairsOfDigitsAreBytes) {
  EXPECT_EQ(BytesFromHex(""), "");
  EXPECT_EQ(BytesFromHex("007f80ffABcd"), std::string("\0\x7f\x80\xff\xab\xcd", 6));
}

TEST(HexTest, AnythingElseIsNothing) {
  for (const char* text : {"0", "000", "0g", "g0", " 0", "0x", "-1",
                           "\xff"
                           "0"})
    EXPECT_FALSE(BytesFromHex(text)) << text;
}

}  // namespace
}  // namespace still
