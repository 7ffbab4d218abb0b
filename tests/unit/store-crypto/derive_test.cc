#include "store/crypto/derive.h"

#include "absl/strings/escaping.h"
#include "base/hex.h"
#include "gtest/gtest.h"

namespace still {
namespace {

std::string Hex(const SecretBytes& secret) { return absl::BytesToHexString(secret.view()); }

// RFC 5869, appendix A: the first 32 bytes of OKM.
TEST(DeriveKeyTest, GivesTheVectorsOfTheRfc) {
  EXPECT_EQ(Hex(DeriveKey(std::string(22, '\x0b'), *BytesFromHex("000102030405060708090a0b0c"),
                          *BytesFromHex("f0f1f2f3f4f5f6f7f8f9"))),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
  EXPECT_EQ(Hex(DeriveKey(std::string(22, '\x0b'), "", "")),
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d");
}

TEST(SecretBytesTest, ComparesWholeContents) {
  EXPECT_TRUE(EqualInConstantTime("", ""));
  EXPECT_TRUE(EqualInConstantTime("abc", "abc"));
  EXPECT_FALSE(EqualInConstantTime("abc", "abd"));
  EXPECT_FALSE(EqualInConstantTime("abc", "ab"));
}

TEST(SecretBytesTest, MovesLeaveNothingBehind) {
  SecretBytes first = SecretBytes::Copy("secret");
  SecretBytes second = std::move(first);
  EXPECT_EQ(first.size(), 0u);
  EXPECT_EQ(second.view(), "secret");
  second = SecretBytes::Copy("other");
  EXPECT_EQ(second.view(), "other");
}

}  // namespace
}  // namespace still
