// Manifests that are gone: forgotten on purpose, or vanished.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "store/catalog/schema.h"
#include "store/sqlite/sqlite.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

class LateClock final : public Clock {
 public:
  absl::Time Now() const override { return Clock::Real().Now() + later; }
  absl::Duration Monotonic() const override { return Clock::Real().Monotonic() + later; }
  void Sleep(absl::Duration duration) override { later += duration; }
  absl::Duration later;
};

class VanishedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    repository_ = MustMake(Here());
    one_ = *StoreImage(*repository_, "one", content_);
    two_ = *StoreImage(*repository_, "two", MakeImage(2, 2 * kMiB));
  }
  // Each host has a catalog of its own, as with encryption.
  RepositoryOptions Options(const char* host) {
    return {.path = directory_.path(), .workers = 2, .catalog_path = JoinPath(caches_.path(), host), .clock = &clock_};
  }
  RepositoryOptions Here() { return Options("here"); }
  RepositoryOptions Elsewhere() { return Options("elsewhere"); }
  void Reopen() {
    repository_.reset();
    repository_ = MustOpen(Here());
  }
  std::string ManifestFile(const std::string& id) {
    return JoinPath(directory_.path(), absl::StrCat("snapshots/", id.substr(0, 2), "/", id));
  }
  // As no version of this program does it.
  void Lose(const std::string& id) { ASSERT_TRUE(std::filesystem::remove(ManifestFile(id))); }
  size_t Notes() {
    const std::string folder = JoinPath(directory_.path(), "forgotten");
    if (!std::filesystem::exists(folder)) return 0;
    size_t notes = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) notes += entry.is_regular_file();
    return notes;
  }
  static std::vector<std::string> VanishedIn(Repository& repository) {
    auto vanished = repository.Vanished();
    EXPECT_TRUE(vanished.ok()) << vanished.status();
    std::vector<std::string> ids;
    for (const VanishedSnapshot& one : *vanished) ids.push_back(one.id);
    return ids;
  }

  TemporaryDirectory directory_;
  TemporaryDirectory caches_;
  LateClock clock_;
  const std::string content_ = MakeImage(1, 2 * kMiB);
  std::unique_ptr<Repository> repository_;
  std::string one_;
  std::string two_;
};

TEST_F(VanishedTest, AManifestThatIsGoneIsToldAndItsDataIsKept) {
  Lose(one_);
  Reopen();
  EXPECT_THAT(*repository_->ListSnapshots(), SizeIs(1));
  ASSERT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  EXPECT_EQ(repository_->Vanished()->front().name, "one");
  EXPECT_EQ(repository_->Stats()->vanished_snapshots, 1u);
  const VerifyReport verified = *repository_->Verify({});
  ASSERT_THAT(verified.problems, SizeIs(1));
  EXPECT_THAT(verified.problems[0], HasSubstr("one ("));
  for (const bool dry_run : {true, false}) {
    const auto pruned = repository_->Prune({.dry_run = dry_run, .grace = absl::ZeroDuration()});
    EXPECT_EQ(pruned.status().code(), absl::StatusCode::kFailedPrecondition) << pruned.status();
    EXPECT_THAT(pruned.status().message(), HasSubstr("still repair"));
  }
  // Not only of whoever noticed it.
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
}

TEST_F(VanishedTest, RepairPutsItBack) {
  Lose(one_);
  Reopen();
  const RepairReport planned = *repository_->Repair({.dry_run = true});
  ASSERT_THAT(planned.actions, SizeIs(1));
  EXPECT_THAT(planned.actions[0], HasSubstr("written anew from the catalog: one ("));
  EXPECT_THAT(*repository_->ListSnapshots(), SizeIs(1));
  ASSERT_TRUE(repository_->Repair({}).ok());
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
  EXPECT_THAT(repository_->Verify({.read_data_percent = 100})->problems, IsEmpty());
  EXPECT_TRUE(repository_->Prune({.grace = absl::ZeroDuration()}).ok());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
}

TEST_F(VanishedTest, ADamagedManifestIsWrittenAnewFromTheCatalog) {
  std::filesystem::resize_file(ManifestFile(one_), 40);
  Reopen();
  ASSERT_TRUE(repository_->Repair({}).ok());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  EXPECT_THAT(repository_->Verify({})->problems, IsEmpty());
}

// What it needs of a damaged pack is saved with it.
TEST_F(VanishedTest, RepairPutsItBackBeforeItSalvages) {
  Lose(one_);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(JoinPath(directory_.path(), "packs"))) {
    // Without their footers: nothing is lost as long as somebody asks for it.
    if (entry.is_regular_file()) std::filesystem::resize_file(entry, entry.file_size() - 40);
  }
  Reopen();
  const RepairReport repaired = *repository_->Repair({});
  EXPECT_THAT(repaired.lost, IsEmpty());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
  EXPECT_EQ(*LoadImage(*repository_, "two"), MakeImage(2, 2 * kMiB));
  EXPECT_THAT(repository_->Verify({.read_data_percent = 100})->problems, IsEmpty());
}

TEST_F(VanishedTest, OneThatComesBackDamagedIsStillKnown) {
  const std::string aside = JoinPath(caches_.path(), "aside");
  std::filesystem::rename(ManifestFile(one_), aside);
  Reopen();
  ASSERT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  std::filesystem::resize_file(aside, 40);
  std::filesystem::rename(aside, ManifestFile(one_));
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(repository_->Repair({}).ok());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
}

TEST_F(VanishedTest, ARebuiltCatalogStillKnowsOfADamagedOne) {
  std::filesystem::resize_file(ManifestFile(one_), 40);
  Reopen();
  ASSERT_TRUE(repository_->RebuildCatalog().ok());
  ASSERT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(repository_->Repair({}).ok());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
}

TEST_F(VanishedTest, WhatIsHeldIsNotGivenUp) {
  ASSERT_TRUE(repository_->HoldSnapshot(one_, "audit").ok());
  Lose(one_);
  Reopen();
  EXPECT_EQ(repository_->Forget({one_}).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(repository_->ReleaseSnapshot(one_).ok());
  EXPECT_TRUE(repository_->Forget({one_}).ok());
}

TEST_F(VanishedTest, ForgettingGivesItUp) {
  Lose(one_);
  Reopen();
  ASSERT_TRUE(repository_->Forget({one_}).ok());
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  const uint64_t before = repository_->Stats()->stored_bytes;
  ASSERT_TRUE(repository_->Prune({.grace = absl::ZeroDuration()}).ok());
  EXPECT_LT(repository_->Stats()->stored_bytes, before);
  EXPECT_EQ(repository_->Forget({one_}).code(), absl::StatusCode::kNotFound);
}

TEST_F(VanishedTest, WhatSomebodyElseForgotHasNotVanished) {
  auto elsewhere = MustOpen(Elsewhere());
  ASSERT_TRUE(elsewhere->Forget({one_}).ok());
  Reopen();
  EXPECT_THAT(*repository_->ListSnapshots(), SizeIs(1));
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  EXPECT_TRUE(repository_->Prune({}).ok());
}

// Whoever has the storage alone cannot write a note that is believed.
TEST_F(VanishedTest, ANoteThatCannotBeReadHidesNothing) {
  Lose(one_);
  const std::string folder = JoinPath(directory_.path(), absl::StrCat("forgotten/", one_.substr(0, 2)));
  ASSERT_TRUE(std::filesystem::create_directories(folder));
  ASSERT_TRUE(WriteFileAtomically(JoinPath(folder, one_), "forged").ok());
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(repository_->Forget({one_}).ok());
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
}

// Both have noticed it; one gives it up.
TEST_F(VanishedTest, WhatSomebodyElseGaveUpIsOver) {
  auto elsewhere = MustOpen(Elsewhere());
  Lose(one_);
  Reopen();
  elsewhere = MustOpen(Elsewhere());
  ASSERT_THAT(VanishedIn(*elsewhere), ElementsAre(one_));
  ASSERT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(elsewhere->Forget({one_}).ok());
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  EXPECT_TRUE(repository_->Prune({}).ok());
}

TEST_F(VanishedTest, OneThatComesBackIsAsItWas) {
  const std::string aside = JoinPath(caches_.path(), "aside");
  std::filesystem::rename(ManifestFile(one_), aside);
  Reopen();
  ASSERT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  std::filesystem::rename(aside, ManifestFile(one_));
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
}

TEST_F(VanishedTest, ARebuiltCatalogStillKnowsOfIt) {
  Lose(one_);
  repository_.reset();
  RepositoryOptions options = Here();
  options.rebuild_catalog = true;
  repository_ = MustOpen(options);
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(repository_->RebuildCatalog().ok());
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
  ASSERT_TRUE(repository_->Repair({}).ok());
  EXPECT_EQ(*LoadImage(*repository_, "one"), content_);
}

// A version that wrote no notes may have forgotten it before this one looked for the first time.
TEST_F(VanishedTest, WhatWasGoneBeforeTheUpgradeIsNoAlarm) {
  repository_.reset();
  {
    auto catalog = Database::Open(Here().catalog_path, kCatalogKind, absl::Seconds(10));
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    ASSERT_TRUE(catalog->Execute("UPDATE listing SET changes = 0 WHERE folder = 'forgotten/'").ok());
  }
  Lose(one_);
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), IsEmpty());
  Lose(two_);
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(two_));
}

TEST_F(VanishedTest, NotesGoWhenEverybodyHasSeenThem) {
  ASSERT_TRUE(repository_->Forget({one_}).ok());
  EXPECT_EQ(Notes(), 1u);
  clock_.later = absl::Hours(24 * 399);
  Reopen();
  ASSERT_TRUE(repository_->Prune({}).ok());
  EXPECT_EQ(Notes(), 1u);
  clock_.later = absl::Hours(24 * 401);
  Reopen();
  ASSERT_TRUE(repository_->Prune({}).ok());
  EXPECT_EQ(Notes(), 0u);
}

// A crash after the note and before the manifest was deleted: it is not forgotten, and may vanish.
TEST_F(VanishedTest, ANoteOfOneThatIsThereGoes) {
  const std::string file = ManifestFile(one_);
  const std::string aside = JoinPath(caches_.path(), "aside");
  std::filesystem::copy_file(file, aside);
  ASSERT_TRUE(repository_->Forget({one_}).ok());
  std::filesystem::rename(aside, file);
  Reopen();
  ASSERT_THAT(*repository_->ListSnapshots(), SizeIs(2));
  clock_.later = absl::Hours(25);
  ASSERT_TRUE(repository_->Prune({}).ok());
  EXPECT_EQ(Notes(), 0u);
  Lose(one_);
  Reopen();
  EXPECT_THAT(VanishedIn(*repository_), ElementsAre(one_));
}

// What a power cut leaves of a lease, or a newer version writes, is in everybody's way until it has been seen unchanged for three
// minutes, however short each look.
TEST_F(VanishedTest, ALeaseThatNobodyRenewsIsInTheWayForMinutesOnly) {
  const std::string locks = JoinPath(directory_.path(), "locks");
  std::filesystem::create_directories(locks);
  ASSERT_TRUE(WriteFileAtomically(JoinPath(locks, "00decafbad00"), "").ok());
  const auto first = repository_->Verify({});
  EXPECT_EQ(first.status().code(), absl::StatusCode::kUnavailable) << first.status();
  Reopen();
  EXPECT_EQ(repository_->Verify({}).status().code(), absl::StatusCode::kUnavailable);
  clock_.later += absl::Minutes(3);
  Reopen();
  const auto later = repository_->Verify({});
  ASSERT_TRUE(later.ok()) << later.status();
  EXPECT_THAT(later->problems, IsEmpty());
}

}  // namespace
}  // namespace still::store
