// Objects of every kind, damaged, missing or duplicated: each is noticed, nothing wrong is ever served, and what can be
// healed is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

class DamageTest : public ::testing::TestWithParam<bool> {
 protected:
  DamageTest() {
    options_ = {.path = JoinPath(directory_.path(), "repository"),
                .workers = 2,
                .key_cost = {.passes = 1, .memory_kib = 8192},
                .catalog_path = JoinPath(directory_.path(), "catalog.db")};
    if (GetParam()) options_.credentials.passphrase = "secret";
  }

  std::vector<std::string> Files(const std::string& folder) {
    std::vector<std::string> files;
    const std::filesystem::path path = JoinPath(options_.path, folder);
    if (!std::filesystem::exists(path)) return files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  std::string LargestPack() {
    std::vector<std::string> packs = Files("packs");
    return *std::max_element(packs.begin(), packs.end(), [](const std::string& a, const std::string& b) {
      return std::filesystem::file_size(a) < std::filesystem::file_size(b);
    });
  }
  void FlipBit(const std::string& file, uint64_t offset) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(stream.get() ^ 0x10);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(byte);
    ASSERT_TRUE(stream.good());
  }
  std::vector<std::string> Problems(Repository& repository) {
    auto report = repository.Verify({.read_data_percent = 100});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? report->problems : std::vector<std::string>{"verify failed"};
  }
  RepairReport Repair(Repository& repository) {
    auto report = repository.Repair({});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.value_or(RepairReport{});
  }
  void ExpectWhole(Repository& repository, const std::string& name, const std::string& content) {
    auto loaded = LoadImage(repository, name);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_TRUE(*loaded == content) << name;
  }

  TemporaryDirectory directory_;
  RepositoryOptions options_;
};

TEST_P(DamageTest, AFlippedBitInAnyKindOfObjectIsFoundAndNeverServed) {
  const std::string content = MakeImage(1, 2 * kMiB);
  {
    auto repository = MustMake(options_);
    ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
    const std::string two = StoreImage(*repository, "two", MakeImage(2, kMiB)).value();
    ASSERT_TRUE(repository->HoldSnapshot(repository->FindSnapshot("one")->id(), "audit").ok());
    ASSERT_TRUE(repository->Forget({two}).ok());
    // A reader, so that the condemned packs stay.
    auto reader = repository->OpenImage(*repository->FindSnapshot("one"), "vda").value();
    ASSERT_TRUE(repository->Prune({.grace = absl::ZeroDuration()}).ok());
    if (GetParam()) {
      ASSERT_TRUE(repository->AddKey({.passphrase = "another"}, "").ok());
    }
  }
  std::vector<std::string> files = {JoinPath(options_.path, "config")};
  for (const char* folder : {"packs", "snapshots", "condemned", "holds", "keys"}) {
    std::vector<std::string> found = Files(folder);
    EXPECT_TRUE(!found.empty() || (folder == std::string("keys") && !GetParam())) << folder;
    files.insert(files.end(), found.begin(), found.end());
  }
  std::mt19937_64 random(3);
  for (const std::string& file : files) {
    const uint64_t size = std::filesystem::file_size(file);
    std::vector<uint64_t> offsets = {0, 5, 25, size - 1, size - 9};
    for (int i = 0; i < 5; ++i) offsets.push_back(random() % size);
    for (uint64_t offset : offsets) {
      SCOPED_TRACE(absl::StrCat(file, " at ", offset));
      FlipBit(file, offset);
      auto repository = Repository::Open(options_);
      if (repository.ok()) {
        EXPECT_THAT(Problems(**repository), Not(IsEmpty()));
        auto loaded = LoadImage(**repository, "one");
        EXPECT_TRUE(!loaded.ok() || *loaded == content);
      } else {
        // Without the config or the key's own slot it cannot be opened, and says why.
        EXPECT_TRUE(absl::IsDataLoss(repository.status()) || absl::IsFailedPrecondition(repository.status()))
            << repository.status();
      }
      FlipBit(file, offset);
    }
  }
  EXPECT_THAT(Problems(*MustOpen(options_)), IsEmpty());
}

TEST_P(DamageTest, WhatANewerVersionWroteIsNotTakenForDamaged) {
  auto repository = MustMake(options_);
  ASSERT_TRUE(StoreImage(*repository, "one", MakeImage(4, kMiB)).ok());
  const std::string pack = LargestPack();
  FlipBit(pack, 5);
  EXPECT_TRUE(absl::IsDataLoss(LoadImage(*repository, "one").status())) << "an accident does not pass for a version";
  FlipBit(pack, 5);

  std::string bytes(std::filesystem::file_size(pack), '\0');
  std::ifstream(pack, std::ios::binary).read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  uint32_t stored_size;
  std::memcpy(&stored_size, &bytes[8], sizeof(stored_size));
  bytes[5] = 99;
  const std::string checked = bytes.substr(0, 24) + bytes.substr(32, stored_size);
  const uint64_t checksum = XXH3_64bits(checked.data(), checked.size());
  std::memcpy(&bytes[24], &checksum, sizeof(checksum));
  std::ofstream(pack, std::ios::binary) << bytes;
  EXPECT_TRUE(absl::IsFailedPrecondition(LoadImage(*repository, "one").status()));
  EXPECT_THAT(Problems(*repository), Contains(HasSubstr("newer version")));
  EXPECT_TRUE(absl::IsFailedPrecondition(repository->Repair({}).status()));
  EXPECT_THAT(Files("quarantine"), IsEmpty());
}

TEST_P(DamageTest, ADamagedHoldStillHoldsUntilItIsSetAside) {
  auto repository = MustMake(options_);
  const std::string id = StoreImage(*repository, "one", MakeImage(4, kMiB)).value();
  ASSERT_TRUE(repository->HoldSnapshot(id, "").ok());
  FlipBit(Files("holds").at(0), 25);
  EXPECT_TRUE(absl::IsFailedPrecondition(repository->Forget({id})));
  EXPECT_EQ(repository->FindSnapshot("one")->labels().count(std::string(kHoldLabel)), 1);
  Repair(*repository);
  EXPECT_THAT(Files("holds"), IsEmpty());
  EXPECT_EQ(Files("quarantine").size(), 1);
  EXPECT_THAT(Problems(*repository), IsEmpty());
  EXPECT_TRUE(repository->Forget({id}).ok());
}

TEST_P(DamageTest, HoldsOfForgottenSnapshotsGoWithThem) {
  auto repository = MustMake(options_);
  const std::string id = StoreImage(*repository, "one", MakeImage(5, kMiB)).value();
  EXPECT_TRUE(absl::IsNotFound(repository->HoldSnapshot(std::string(32, '0'), "")));
  EXPECT_TRUE(absl::IsInvalidArgument(repository->HoldSnapshot(id, std::string(2000, 'x'))));
  ASSERT_TRUE(repository->HoldSnapshot(id, "").ok());
  const std::string note = Files("holds").at(0);
  std::filesystem::copy_file(note, absl::StrCat(note, "x"));
  std::filesystem::rename(absl::StrCat(note, "x"), note.substr(0, note.size() - 4) + "0000");
  ASSERT_TRUE(repository->Prune({}).ok());
  EXPECT_THAT(Files("holds"), ::testing::ElementsAre(note)) << "one of a snapshot that is not there";
  ASSERT_TRUE(repository->ReleaseSnapshot(id).ok());
  ASSERT_TRUE(repository->Forget({id}).ok());
  EXPECT_THAT(Files("holds"), IsEmpty());
}

// A copy of a pack under another name: no part of an encrypted repository, and harmless in a plain one.
TEST_P(DamageTest, ADuplicatedPackDoesNoHarm) {
  const std::string content = MakeImage(6, 3 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(options_), "one", content).ok());
  for (const std::string& pack : Files("packs")) {
    std::string copy = pack;
    copy.back() = copy.back() == 'a' ? 'b' : 'a';
    std::filesystem::copy_file(pack, copy);
  }
  auto repository = MustOpen(options_);
  ExpectWhole(*repository, "one", content);
  EXPECT_EQ(Problems(*repository).empty(), !GetParam());
  ASSERT_TRUE(StoreImage(*repository, "two", ChangeImage(content, 7, 20)).ok());
  EXPECT_THAT(Repair(*repository).lost, IsEmpty());
  ASSERT_TRUE(repository->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 0.9}).ok());
  ExpectWhole(*repository, "one", content);
  ExpectWhole(*repository, "two", ChangeImage(content, 7, 20));
  EXPECT_THAT(Problems(*repository), IsEmpty());
}

TEST_P(DamageTest, RepairTakesALostBlockFromAnotherPackThatHasIt) {
  const std::string content = MakeImage(8, 4 * kMiB);
  auto repository = MustMake(options_);
  {
    // Two captures at once do not see each other's blocks.
    auto first = repository->BeginSnapshot().value();
    auto second = repository->BeginSnapshot().value();
    for (auto* snapshot : {first.get(), second.get()}) {
      auto image = snapshot->BeginImage({.name = "vda", .size = content.size()}).value();
      ASSERT_TRUE(image->Write(0, content).ok());
      ASSERT_TRUE(image->Finish().ok());
    }
    ASSERT_TRUE(first->Commit(Manifest("one")).ok());
    ASSERT_TRUE(second->Commit(Manifest("two")).ok());
  }
  std::string pack = LargestPack();
  ASSERT_EQ(Files("packs").size(), 4);
  FlipBit(pack, 1000);
  const RepairReport report = Repair(*repository);
  EXPECT_THAT(report.lost, IsEmpty());
  EXPECT_THAT(report.actions, Not(IsEmpty()));
  EXPECT_THAT(Problems(*repository), IsEmpty());
  ExpectWhole(*repository, "one", content);
  ExpectWhole(*repository, "two", content);
}

TEST_P(DamageTest, WhatWasLostHealsWhenItsContentIsCapturedAgain) {
  const std::string content = MakeImage(9, 4 * kMiB);
  auto repository = MustMake(options_);
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  FlipBit(LargestPack(), 1000);
  EXPECT_THAT(Repair(*repository).lost, Not(IsEmpty()));
  EXPECT_FALSE(LoadImage(*repository, "one").ok());
  // At other places and in other leaves: only its blocks are the same.
  const std::string shifted = std::string(kBlockBytes, 'x') + content;
  ASSERT_TRUE(StoreImage(*repository, "two", shifted).ok());
  ExpectWhole(*repository, "two", shifted);
  EXPECT_THAT(Repair(*repository).lost, IsEmpty());
  ExpectWhole(*repository, "one", content);
  EXPECT_THAT(Problems(*repository), IsEmpty());
}

TEST_P(DamageTest, ACaptureWithALostParentIsWholeAndHealsIt) {
  const std::string content = MakeImage(10, 4 * kMiB);
  auto repository = MustMake(options_);
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  FlipBit(LargestPack(), 1000);
  EXPECT_THAT(Repair(*repository).lost, Not(IsEmpty()));
  const manifest::Snapshot parent = *repository->FindSnapshot("one");
  ASSERT_TRUE(StoreImage(*repository, "two", content, &parent.images(0)).ok());
  ExpectWhole(*repository, "two", content);
  ExpectWhole(*repository, "one", content);
  EXPECT_THAT(Problems(*repository), IsEmpty());
}

TEST_P(DamageTest, AMissingPackCostsItsBlocksAndNothingElse) {
  const std::string content = MakeImage(11, 4 * kMiB);
  const std::string other = MakeImage(12, 4 * kMiB);
  auto repository = MustMake(options_);
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  const std::string pack = LargestPack();
  ASSERT_TRUE(StoreImage(*repository, "two", other).ok());
  ASSERT_TRUE(RemoveFile(pack).ok());
  const RepairReport report = Repair(*repository);
  ASSERT_THAT(report.lost, Not(IsEmpty()));
  for (const LostRange& lost : report.lost) EXPECT_EQ(lost.snapshot_name, "one");
  ExpectWhole(*repository, "two", other);
  // Nobody knows its blocks' ids any more, but whole leaves that come again are the same leaves.
  ASSERT_TRUE(StoreImage(*repository, "again", content).ok());
  ExpectWhole(*repository, "one", content);
  EXPECT_THAT(Problems(*repository), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(PlainAndEncrypted, DamageTest, ::testing::Bool());

}  // namespace
}  // namespace still::store
