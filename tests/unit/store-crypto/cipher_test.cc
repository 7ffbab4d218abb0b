#include "store/crypto/cipher.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/crypto/derive.h"
#include "store/crypto/repository_keys.h"

namespace still {
namespace {

RepositoryKeys TestKeys(char fill = 7) { return RepositoryKeys::FromMaster(SecretBytes::Copy(std::string(32, fill))); }

std::string Seal(const ObjectCipher& cipher, uint64_t position, absl::string_view associated, absl::string_view plain) {
  std::string sealed(plain.size() + ObjectCipher::kTagBytes, '\0');
  cipher.Seal(position, associated, plain, absl::MakeSpan(sealed));
  return sealed;
}

absl::StatusOr<std::string> Open(const ObjectCipher& cipher, uint64_t position, absl::string_view associated,
                                 absl::string_view sealed) {
  std::string plain(sealed.size() - ObjectCipher::kTagBytes, '?');
  absl::Status status = cipher.Open(position, associated, sealed, absl::MakeSpan(plain));
  if (!status.ok()) return status;
  return plain;
}

TEST(ObjectCipherTest, OpensWhatItSealed) {
  RepositoryKeys keys = TestKeys();
  ObjectCipher cipher = keys.NewObject(SealedKind::kPack, "packs/one");
  absl::StatusOr<ObjectCipher> again = keys.ExistingObject(SealedKind::kPack, "packs/one", cipher.salt());
  ASSERT_TRUE(again.ok());
  for (size_t size : {0, 1, 16, 4096, 262144}) {
    std::string plain(size, 'x');
    std::string sealed = Seal(cipher, size, "frame header", plain);
    EXPECT_EQ(*Open(*again, size, "frame header", sealed), plain) << size;
  }
}

TEST(ObjectCipherTest, SealsAndOpensInPlace) {
  ObjectCipher cipher = TestKeys().NewObject(SealedKind::kPack, "packs/one");
  std::string buffer = "some text" + std::string(ObjectCipher::kTagBytes, '\0');
  absl::Span<char> whole = absl::MakeSpan(buffer);
  cipher.Seal(3, "", absl::string_view(buffer).substr(0, 9), whole);
  EXPECT_NE(buffer.substr(0, 9), "some text");
  ASSERT_TRUE(cipher.Open(3, "", buffer, whole.subspan(0, 9)).ok());
  EXPECT_EQ(buffer.substr(0, 9), "some text");
}

TEST(ObjectCipherTest, EveryFlippedBitIsFound) {
  ObjectCipher cipher = TestKeys().NewObject(SealedKind::kPack, "packs/one");
  std::string sealed = Seal(cipher, 5, "header", "twenty bytes of text");
  for (size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    std::string damaged = sealed;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    std::string out(sealed.size() - ObjectCipher::kTagBytes, '?');
    absl::Status status = cipher.Open(5, "header", damaged, absl::MakeSpan(out));
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << "bit " << bit;
    ASSERT_EQ(out, std::string(out.size(), '\0')) << "unauthenticated bytes were given out, bit " << bit;
  }
  EXPECT_TRUE(Open(cipher, 5, "header", sealed).ok()) << "a failure must not spoil the thread's context";
}

TEST(ObjectCipherTest, AFrameOpensOnlyWhereItWasSealed) {
  RepositoryKeys keys = TestKeys();
  ObjectCipher cipher = keys.NewObject(SealedKind::kPack, "packs/one");
  std::string salt(cipher.salt());
  std::string sealed = Seal(cipher, 5, "header", "text");
  EXPECT_FALSE(Open(cipher, 6, "header", sealed).ok());
  EXPECT_FALSE(Open(cipher, 5, "Header", sealed).ok());
  EXPECT_FALSE(Open(cipher, 5, "", sealed).ok());
  EXPECT_FALSE(Open(cipher, 5, "header", sealed.substr(1)).ok());
  EXPECT_FALSE(Open(cipher, 5 + (uint64_t{1} << 32), "header", sealed).ok());
  EXPECT_FALSE(Open(*keys.ExistingObject(SealedKind::kPack, "packs/two", salt), 5, "header", sealed).ok());
  EXPECT_FALSE(Open(*keys.ExistingObject(SealedKind::kManifest, "packs/one", salt), 5, "header", sealed).ok());
  EXPECT_FALSE(Open(*TestKeys(8).ExistingObject(SealedKind::kPack, "packs/one", salt), 5, "header", sealed).ok());
  salt[0] = static_cast<char>(salt[0] ^ 1);
  EXPECT_FALSE(Open(*keys.ExistingObject(SealedKind::kPack, "packs/one", salt), 5, "header", sealed).ok());
  EXPECT_EQ(keys.ExistingObject(SealedKind::kPack, "packs/one", "short").status().code(), absl::StatusCode::kDataLoss);
}

// The same plaintext under the same name and position never gives the same bytes twice: the salt is fresh.
TEST(ObjectCipherTest, ARetryOfAnObjectSharesNoKeyStream) {
  RepositoryKeys keys = TestKeys();
  std::string first = Seal(keys.NewObject(SealedKind::kPack, "packs/one"), 0, "", std::string(64, '\0'));
  std::string second = Seal(keys.NewObject(SealedKind::kPack, "packs/one"), 0, "", std::string(64, '\0'));
  EXPECT_NE(first.substr(0, 16), second.substr(0, 16));
}

// What is stored today must open in ten years. The bytes were computed once with another implementation of HKDF and
// AES-GCM from docs/format/keys.md (tests/golden/keys.py).
TEST(ObjectCipherTest, OpensTheGoldenFrame) {
  absl::StatusOr<ObjectCipher> cipher =
      TestKeys().ExistingObject(SealedKind::kPack, "packs/0123456789abcdef", std::string(32, 's'));
  ASSERT_TRUE(cipher.ok());
  EXPECT_EQ(absl::BytesToHexString(Seal(*cipher, 4096, "head", "hello")), "d7e88fa539a2ab52c03dc863dce07a4473fada225d");
  EXPECT_EQ(absl::BytesToHexString(TestKeys().id_key()),
            "43af46d34aa6bad4acd30450303a6bbc77f90214afe94c9a722f4b8e5a258939");
}

TEST(ObjectCipherTest, ThreadsShareCiphers) {
  RepositoryKeys keys = TestKeys();
  std::vector<ObjectCipher> ciphers;
  for (int i = 0; i < 3; ++i) ciphers.push_back(keys.NewObject(SealedKind::kPack, absl::StrCat("packs/pack", i)));
  std::vector<std::thread> threads;
  std::atomic<int> opened{0};
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 100; ++i) {
        const ObjectCipher& cipher = ciphers[i % ciphers.size()];
        std::string plain = absl::StrCat("thread ", t, " frame ", i);
        absl::StatusOr<std::string> got = Open(cipher, 1000 * t + i, "", Seal(cipher, 1000 * t + i, "", plain));
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
  EXPECT_EQ(
      *keys.OpenWhole(SealedKind::kManifest, "snapshots/a1", keys.SealWhole(SealedKind::kManifest, "snapshots/a1", "")),
      "");
  EXPECT_EQ(keys.OpenWhole(SealedKind::kManifest, "snapshots/a2", sealed).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(keys.OpenWhole(SealedKind::kState, "snapshots/a1", sealed).status().code(), absl::StatusCode::kDataLoss);
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
