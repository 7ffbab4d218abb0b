#include "store/crypto/key_ring.h"

#include <stdlib.h>

#include <memory>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/object/directory_store.h"

namespace still {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

// The least a reader accepts, so that the test is about slots and not about Argon2id.
constexpr KeyCost kCheap{.passes = 1, .memory_kib = kMinKeyMemoryKib};

NewKeyOptions Cheap(std::string label = "test") { return {.label = std::move(label), .cost = kCheap}; }

class KeyRingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-keys-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "store")).ok());
    store_ = *DirectoryObjectStore::Open(JoinPath(dir_, "store"));
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }

  absl::Status OpenWith(absl::string_view passphrase) {
    return OpenKeyRing(*store_, *KeySecret::Passphrase(passphrase)).status();
  }
  std::string OnlySlot() { return store_->List("keys/")->at(0).name; }
  void Overwrite(const std::string& name, absl::string_view bytes) {
    ASSERT_TRUE(store_->Put(name, bytes, {.mode = PutMode::kReplace}).ok());
  }

  std::string dir_;
  std::unique_ptr<ObjectStore> store_;
};

TEST_F(KeyRingTest, EveryAddedSecretOpensTheSameKeys) {
  absl::StatusOr<RepositoryKeys> keys = CreateKeyRing(*store_, *KeySecret::Passphrase("first"), Cheap());
  ASSERT_TRUE(keys.ok()) << keys.status();
  std::string path = JoinPath(dir_, "key-file");
  ASSERT_TRUE(WriteFileAtomically(path, std::string("bytes\0with\nanything", 19)).ok());
  ASSERT_TRUE(AddKey(*store_, *keys, *KeySecret::Passphrase("second"), Cheap()).ok());
  ASSERT_TRUE(AddKey(*store_, *keys, *KeySecret::KeyFile(path), Cheap()).ok());
  for (const KeySecret& secret :
       {*KeySecret::Passphrase("first"), *KeySecret::Passphrase("second"), *KeySecret::KeyFile(path)}) {
    absl::StatusOr<OpenedKeyRing> ring = OpenKeyRing(*store_, secret);
    ASSERT_TRUE(ring.ok()) << ring.status();
    EXPECT_EQ(ring->keys.master(), keys->master());
  }
}

TEST_F(KeyRingTest, AWrongSecretIsToldApartFromDamage) {
  ASSERT_TRUE(CreateKeyRing(*store_, *KeySecret::Passphrase("right"), Cheap()).ok());
  absl::Status wrong = OpenWith("wrong");
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(wrong.message(), HasSubstr("wrong passphrase"));
  KeySecret as_file{.kind = KeyKind::kKeyFile, .bytes = SecretBytes::Copy("right")};
  EXPECT_EQ(OpenKeyRing(*store_, as_file).status().code(), absl::StatusCode::kPermissionDenied);

  std::string slot = *store_->Get(OnlySlot(), kMaxKeySlotBytes);
  for (size_t byte = 0; byte < slot.size(); ++byte) {
    std::string damaged = slot;
    damaged[byte] = static_cast<char>(damaged[byte] ^ 0x10);
    Overwrite(OnlySlot(), damaged);
    absl::Status status = OpenWith("right");
    // A changed version byte may be a newer version; everything else is damage.
    absl::StatusCode expected =
        byte == 8 || byte == 9 ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kDataLoss;
    ASSERT_EQ(status.code(), expected) << "byte " << byte << ": " << status;
  }
  for (size_t length : {size_t{0}, size_t{1}, size_t{119}, slot.size() - 1}) {
    Overwrite(OnlySlot(), slot.substr(0, length));
    EXPECT_EQ(OpenWith("right").code(), absl::StatusCode::kDataLoss) << length;
  }
  Overwrite(OnlySlot(), std::string(kMaxKeySlotBytes + 1, 'x'));
  EXPECT_EQ(OpenWith("right").code(), absl::StatusCode::kDataLoss);
  Overwrite(OnlySlot(), slot);
  EXPECT_TRUE(OpenWith("right").ok());
}

TEST_F(KeyRingTest, ADamagedSlotDoesNotHinderTheOthers) {
  RepositoryKeys keys = *CreateKeyRing(*store_, *KeySecret::Passphrase("one"), Cheap());
  std::string second = *AddKey(*store_, keys, *KeySecret::Passphrase("two"), Cheap());
  Overwrite("keys/" + second, "rubbish");
  EXPECT_TRUE(OpenWith("one").ok());
  EXPECT_EQ(OpenWith("two").code(), absl::StatusCode::kDataLoss);
  absl::StatusOr<std::vector<KeySlotInfo>> slots = ListKeys(*store_, keys);
  ASSERT_THAT(*slots, SizeIs(2));
  for (const KeySlotInfo& slot : *slots) EXPECT_EQ(slot.status.ok(), slot.id != second);
}

// Whoever can write to the storage moves a whole slot of his own repository into ours.
TEST_F(KeyRingTest, AForeignSlotOrARenamedOneIsNotPartOfTheRing) {
  RepositoryKeys keys = *CreateKeyRing(*store_, *KeySecret::Passphrase("mine"), Cheap());
  std::string name = OnlySlot();
  RepositoryKeys foreign = RepositoryKeys::Generate();
  std::string slot = *EncodeKeySlot("keys/00000000000000aa", KeyKind::kPassphrase, SecretBytes::Copy("his"), kCheap,
                                    {.label = "his"}, foreign);
  Overwrite("keys/00000000000000aa", slot);
  absl::StatusOr<std::vector<KeySlotInfo>> slots = ListKeys(*store_, keys);
  ASSERT_THAT(*slots, SizeIs(2));
  for (const KeySlotInfo& info : *slots) {
    EXPECT_EQ(info.status.ok(), info.id != "00000000000000aa");
  }
  // A foreign slot does not count as a way in that is left.
  EXPECT_EQ(RevokeKey(*store_, keys, name.substr(5)).code(), absl::StatusCode::kFailedPrecondition);
  Overwrite("keys/00000000000000bb", *store_->Get(name, kMaxKeySlotBytes));
  ASSERT_TRUE(store_->Delete(name).ok());
  EXPECT_EQ(OpenWith("mine").code(), absl::StatusCode::kDataLoss) << "the description is bound to the slot's name";
}

TEST_F(KeyRingTest, ARevokedSecretNoLongerOpensAndTheLastOneStays) {
  RepositoryKeys keys = *CreateKeyRing(*store_, *KeySecret::Passphrase("one"), Cheap());
  std::string first = OnlySlot().substr(5);
  EXPECT_EQ(RevokeKey(*store_, keys, first).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(RevokeKey(*store_, keys, "0000000000000000").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(AddKey(*store_, keys, *KeySecret::Passphrase("two"), Cheap()).ok());
  ASSERT_TRUE(RevokeKey(*store_, keys, first).ok());
  EXPECT_EQ(OpenWith("one").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(OpenWith("two").ok());
}

TEST_F(KeyRingTest, ChangingReplacesOneSecret) {
  RepositoryKeys keys = *CreateKeyRing(*store_, *KeySecret::Passphrase("old"), Cheap());
  absl::StatusOr<std::string> changed =
      ChangeKey(*store_, keys, OnlySlot().substr(5), *KeySecret::Passphrase("new"), Cheap());
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(OpenWith("old").code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(OpenWith("new").ok());
  EXPECT_EQ(ChangeKey(*store_, keys, "0000000000000000", *KeySecret::Passphrase("x"), Cheap()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(*store_->List("keys/"), SizeIs(1)) << "a change that failed must not leave a way in";
}

TEST_F(KeyRingTest, SlotsDescribeThemselves) {
  RepositoryKeys keys = *CreateKeyRing(*store_, *KeySecret::Passphrase("one"), Cheap("laptop"));
  absl::StatusOr<std::vector<KeySlotInfo>> slots = ListKeys(*store_, keys);
  ASSERT_THAT(*slots, SizeIs(1));
  EXPECT_EQ((*slots)[0].description.label, "laptop");
  EXPECT_EQ((*slots)[0].kind, KeyKind::kPassphrase);
  EXPECT_EQ((*slots)[0].cost.memory_kib, kMinKeyMemoryKib);
  EXPECT_LT(absl::AbsDuration(absl::Now() - (*slots)[0].description.created), absl::Minutes(1));
  std::string slot = *store_->Get(OnlySlot(), kMaxKeySlotBytes);
  EXPECT_EQ(slot.find("laptop"), std::string::npos) << "the label is not clear";
}

TEST_F(KeyRingTest, CostsAndSecretsOutOfBoundsAreRefused) {
  KeySecret secret = *KeySecret::Passphrase("x");
  for (KeyCost cost : {KeyCost{0, kMinKeyMemoryKib}, KeyCost{kMaxKeyPasses + 1, kMinKeyMemoryKib},
                       KeyCost{1, kMinKeyMemoryKib - 1}, KeyCost{1, kMaxKeyMemoryKib + 1}}) {
    EXPECT_EQ(CreateKeyRing(*store_, secret, {.label = "", .cost = cost}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(CreateKeyRing(*store_, secret, Cheap(std::string(256, 'l'))).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(KeySecret::Passphrase("").ok());
  std::string path = JoinPath(dir_, "key-file");
  ASSERT_TRUE(WriteFileAtomically(path, "").ok());
  EXPECT_EQ(KeySecret::KeyFile(path).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(WriteFileAtomically(path, std::string((64 << 10) + 1, 'k')).ok());
  EXPECT_EQ(KeySecret::KeyFile(path).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KeySecret::KeyFile(path + "-not-there").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(*store_->List(""), SizeIs(0));
  EXPECT_EQ(OpenKeyRing(*store_, secret).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace still
