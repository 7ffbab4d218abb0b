#include "store/crypto/repository_keys.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/hex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

using ::testing::HasSubstr;

RepositoryKeys TestKeys(char fill = 7) { return RepositoryKeys::FromMaster(SecretBytes::Copy(std::string(32, fill))); }

std::string Seal(const RepositoryKeys& keys, absl::string_view associated, absl::string_view plain) {
  std::string sealed(plain.size() + RepositoryKeys::kSealedExtra, '\0');
  keys.Seal(SealedKind::kPack, associated, plain, absl::MakeSpan(sealed));
  return sealed;
}

absl::StatusOr<std::string> Open(const RepositoryKeys& keys, absl::string_view associated, absl::string_view sealed,
                                 SealedKind kind = SealedKind::kPack) {
  std::string plain(sealed.size() - RepositoryKeys::kSealedExtra, '?');
  absl::Status status = keys.Open(kind, associated, sealed, absl::MakeSpan(plain));
  if (!status.ok()) return status;
  return plain;
}

TEST(RepositoryKeysTest, OpensWhatItSealed) {
  RepositoryKeys keys = TestKeys();
  for (size_t size : {0, 1, 16, 4096, 262144}) {
    std::string plain(size, 'x');
    EXPECT_EQ(*Open(TestKeys(), "frame header", Seal(keys, "frame header", plain)), plain) << size;
  }
}

TEST(RepositoryKeysTest, EveryFlippedBitIsFoundAndNothingIsGivenOut) {
  RepositoryKeys keys = TestKeys();
  std::string sealed = Seal(keys, "header", "twenty bytes of text");
  for (size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    std::string damaged = sealed;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    std::string out(20, '?');
    absl::Status status = keys.Open(SealedKind::kPack, "header", damaged, absl::MakeSpan(out));
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << "bit " << bit;
    ASSERT_EQ(out, std::string(20, '\0')) << "unauthenticated bytes were given out, bit " << bit;
  }
  EXPECT_TRUE(Open(keys, "header", sealed).ok()) << "a failure must not spoil the thread's context";
}

TEST(RepositoryKeysTest, AFrameOpensOnlyAsWhatItWasSealed) {
  RepositoryKeys keys = TestKeys();
  std::string sealed = Seal(keys, "header", "some text");
  EXPECT_TRUE(Open(keys, "header", sealed).ok());
  EXPECT_FALSE(Open(keys, "Header", sealed).ok());
  EXPECT_FALSE(Open(keys, "", sealed).ok());
  EXPECT_FALSE(Open(keys, "header", sealed.substr(1)).ok());
  EXPECT_FALSE(Open(keys, "header", sealed.substr(0, sealed.size() - 1)).ok());
  EXPECT_FALSE(Open(keys, "header", sealed + "x").ok());
  EXPECT_FALSE(Open(keys, "header", sealed, SealedKind::kManifest).ok());
  EXPECT_FALSE(Open(keys, "header", sealed, SealedKind::kState).ok());
  EXPECT_FALSE(Open(TestKeys(8), "header", sealed).ok());
}

// Sealing the same twice shares neither salt nor key stream.
TEST(RepositoryKeysTest, SealingIsRandomized) {
  RepositoryKeys keys = TestKeys();
  std::string first = Seal(keys, "", std::string(64, '\0'));
  std::string second = Seal(keys, "", std::string(64, '\0'));
  EXPECT_NE(first.substr(0, RepositoryKeys::kSaltBytes), second.substr(0, RepositoryKeys::kSaltBytes));
  EXPECT_NE(first.substr(RepositoryKeys::kSaltBytes, 64), second.substr(RepositoryKeys::kSaltBytes, 64));
}

// What is stored today must open in ten years. The bytes come from tests/golden/keys.py, which knows only
// docs/format/keys.md.
TEST(RepositoryKeysTest, OpensTheGoldenFrame) {
  std::string sealed =
      std::string(RepositoryKeys::kSaltBytes, 's') + *BytesFromHex("876eae993dc5a80578f116a7bef746d5a309dbefb6");
  EXPECT_EQ(*Open(TestKeys(), "head", sealed), "hello");
  EXPECT_EQ(absl::BytesToHexString(TestKeys().id_key()),
            "43af46d34aa6bad4acd30450303a6bbc77f90214afe94c9a722f4b8e5a258939");
}

TEST(RepositoryKeysTest, ThreadsShareKeys) {
  RepositoryKeys keys = TestKeys();
  std::vector<std::thread> threads;
  std::atomic<int> opened{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&keys, &opened, t] {
      for (int i = 0; i < 100; ++i) {
        std::string plain = absl::StrCat("thread ", t, " frame ", i);
        absl::StatusOr<std::string> got = Open(keys, plain, Seal(keys, plain, plain));
        if (got.ok() && *got == plain) ++opened;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(opened, 400);
}

TEST(RepositoryKeysTest, WholeObjectsAreBoundToKindAndName) {
  RepositoryKeys keys = TestKeys();
  std::string sealed = keys.SealWhole(SealedKind::kManifest, "snapshots/a1", "manifest");
  EXPECT_EQ(*keys.OpenWhole(SealedKind::kManifest, "snapshots/a1", sealed), "manifest");
  absl::Status moved = keys.OpenWhole(SealedKind::kManifest, "snapshots/a2", sealed).status();
  EXPECT_EQ(moved.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(moved.message(), HasSubstr("snapshots/a2"));
  EXPECT_FALSE(keys.OpenWhole(SealedKind::kState, "snapshots/a1", sealed).ok());
  for (size_t length = 0; length < sealed.size(); ++length) {
    EXPECT_EQ(keys.OpenWhole(SealedKind::kManifest, "snapshots/a1", sealed.substr(0, length)).status().code(),
              absl::StatusCode::kDataLoss);
  }
}

TEST(RepositoryKeysTest, TwoRepositoriesShareNothing) {
  RepositoryKeys one = RepositoryKeys::Generate();
  RepositoryKeys two = RepositoryKeys::Generate();
  EXPECT_NE(one.master(), two.master());
  EXPECT_NE(one.id_key(), two.id_key());
  EXPECT_NE(one.id_key(), one.master());
}

}  // namespace
}  // namespace still
