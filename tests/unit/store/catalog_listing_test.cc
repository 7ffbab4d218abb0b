// What opening a repository lists: nothing that is as it was, and everything that may not be. Time is not waited for: the file
// system under the repository says that it was asked later than it was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "store/catalog/catalog.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// The machine's, but for how it stamps directories; counts how often one with objects in it is listed.
class WatchedFileSystem final : public FileSystem {
 public:
  enum class Stamps { kSettled, kJustChanged, kNone };
  Stamps stamps = Stamps::kSettled;
  int lists = 0;

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    return real_.CreateFile(path);
  }
  absl::Status ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) override {
    return real_.ReadRange(path, offset, out);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override { return real_.Stat(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    if (absl::StrContains(directory, "/packs/") || absl::StrContains(directory, "/snapshots/")) ++lists;
    return real_.List(directory);
  }
  absl::StatusOr<std::optional<DirectoryStamp>> StampDirectory(const std::string& directory) override {
    absl::StatusOr<std::optional<DirectoryStamp>> stamp = real_.StampDirectory(directory);
    if (!stamp.ok()) return stamp;
    if (stamps == Stamps::kNone || !stamp->has_value()) return std::nullopt;
    (*stamp)->asked = std::max((*stamp)->modified, (*stamp)->changed);
    if (stamps == Stamps::kSettled) (*stamp)->asked += absl::Hours(1);
    return stamp;
  }
  absl::Status MakeDirectory(const std::string& path) override { return real_.MakeDirectory(path); }
  absl::Status Rename(const std::string& from, const std::string& to, RenameMode mode) override {
    return real_.Rename(from, to, mode);
  }
  absl::Status Remove(const std::string& path) override { return real_.Remove(path); }
  absl::StatusOr<bool> RemoveUnattended(const std::string& path) override { return real_.RemoveUnattended(path); }
  absl::Status SyncDirectory(const std::string& path) override { return real_.SyncDirectory(path); }
  absl::StatusOr<uint64_t> AvailableBytes(const std::string& path) override { return real_.AvailableBytes(path); }

 private:
  FileSystem& real_ = FileSystem::Real();
};

class CatalogListingTest : public ::testing::Test {
 protected:
  CatalogListingTest() {
    options_ = {.path = JoinPath(directory_.path(), "repository"),
                .workers = 1,
                .catalog_path = JoinPath(directory_.path(), "ours.db")};
    EXPECT_TRUE(Repository::Init(options_).ok());
    options_.file_system = &watched_;
    others_ = options_;
    others_.catalog_path = JoinPath(directory_.path(), "theirs.db");
    others_.file_system = nullptr;
  }
  void SetUp() override {
    if (!FileSystem::Real().StampDirectory(directory_.path())->has_value()) {
      GTEST_SKIP() << "this file system stamps nothing that can be relied on";
    }
  }
  // By somebody with a catalog of his own, as each user and host of an encrypted repository has one.
  std::string OthersStore(const std::string& name) {
    WaitForTheClock();
    auto id = StoreImage(*MustOpen(others_), name, MakeImage(++seed_, 64 * 1024));
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or("");
  }
  void OthersForget(const std::string& id) {
    WaitForTheClock();
    const absl::Status forgotten = MustOpen(others_)->Forget({id});
    EXPECT_TRUE(forgotten.ok()) << forgotten;
  }
  // Names of the snapshots that a new process sees; how often it listed is in watched_.lists.
  std::vector<std::string> Open() {
    watched_.lists = 0;
    std::vector<std::string> names;
    const auto snapshots = MustOpen(options_)->ListSnapshots();
    EXPECT_TRUE(snapshots.ok()) << snapshots.status();
    for (const manifest::Snapshot& snapshot : *snapshots) names.push_back(snapshot.name());
    return names;
  }
  // The first finds what is new, the next that all is known, and then there is nothing to list.
  void OpenUntilAllIsKnown() {
    for (int i = 0; i < 3; ++i) Open();
    if (watched_.stamps == WatchedFileSystem::Stamps::kSettled) {
      EXPECT_EQ(watched_.lists, 0);
    }
  }
  std::string ManifestPath(const std::string& id) const {
    return absl::StrCat(options_.path, "/snapshots/", id.substr(0, 2), "/", id);
  }
  // Until the file system's clock has moved on: the watched one claims that hours lie between what a test does.
  void WaitForTheClock() {
    const std::string path = JoinPath(directory_.path(), "clock");
    ASSERT_TRUE(WriteFileAtomically(path, "").ok());
    const absl::Time first = FileSystem::Real().Stat(path)->modified;
    do {
      ASSERT_TRUE(WriteFileAtomically(path, "").ok());
    } while (FileSystem::Real().Stat(path)->modified == first);
  }

  TemporaryDirectory directory_;
  WatchedFileSystem watched_;
  RepositoryOptions options_;
  RepositoryOptions others_;
  uint64_t seed_ = 0;
};

TEST_F(CatalogListingTest, WhatIsAsItWasIsNotListedAgain) {
  OthersStore("one");
  EXPECT_THAT(Open(), ElementsAre("one"));
  EXPECT_GT(watched_.lists, 0) << "it is new";
  OpenUntilAllIsKnown();
  EXPECT_THAT(Open(), ElementsAre("one"));
  EXPECT_EQ(watched_.lists, 0);
}

TEST_F(CatalogListingTest, WhatOthersAddAndRemoveIsSeen) {
  const std::string one = OthersStore("one");
  OpenUntilAllIsKnown();
  OthersStore("two");
  EXPECT_THAT(Open(), UnorderedElementsAre("one", "two"));
  OpenUntilAllIsKnown();
  OthersForget(one);
  EXPECT_THAT(Open(), ElementsAre("two"));
  OpenUntilAllIsKnown();
  EXPECT_THAT(Open(), ElementsAre("two"));
  EXPECT_EQ(watched_.lists, 0);
}

// Another change could follow within the same step of the file system's clock, and leave the same stamp.
TEST_F(CatalogListingTest, WhatHasJustChangedIsListedAgain) {
  watched_.stamps = WatchedFileSystem::Stamps::kJustChanged;
  OthersStore("one");
  OpenUntilAllIsKnown();
  EXPECT_THAT(Open(), ElementsAre("one"));
  EXPECT_GT(watched_.lists, 0);
}

TEST_F(CatalogListingTest, AFileSystemThatCannotSayIsListedAlways) {
  watched_.stamps = WatchedFileSystem::Stamps::kNone;
  OthersStore("one");
  OpenUntilAllIsKnown();
  EXPECT_THAT(Open(), ElementsAre("one"));
  EXPECT_GT(watched_.lists, 0);
}

// As a forget leaves it that cannot delete the manifest: no directory has changed, and only the row is gone.
TEST_F(CatalogListingTest, ARowThatGoesWhileItsObjectStaysIsFoundAgain) {
  const std::string id = OthersStore("one");
  OpenUntilAllIsKnown();
  {
    auto catalog = Catalog::Open({.path = options_.catalog_path});
    ASSERT_TRUE(catalog.ok()) << catalog.status();
    auto change = (*catalog)->Begin();
    ASSERT_TRUE(change.ok() && change->RemoveSnapshot(id).ok() && change->Commit().ok());
  }
  EXPECT_THAT(Open(), ElementsAre("one"));
}

TEST_F(CatalogListingTest, AManifestThatCannotBeReadIsTriedAgain) {
  const std::string path = ManifestPath(OthersStore("one"));
  const std::string whole = *ReadFile(path, 1 << 20);
  // In its place, so that no directory changes.
  const auto write = [&](const std::string& bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file << bytes;
    ASSERT_TRUE(file.flush().good());
  };
  write(std::string(whole.size(), 'x'));
  EXPECT_THAT(Open(), IsEmpty());
  EXPECT_THAT(Open(), IsEmpty());
  write(whole);
  EXPECT_THAT(Open(), ElementsAre("one"));
}

// A rebuild believes nothing that was remembered.
TEST_F(CatalogListingTest, ARebuildListsEverything) {
  OthersStore("one");
  OpenUntilAllIsKnown();
  watched_.lists = 0;
  ASSERT_TRUE(MustOpen(options_)->RebuildCatalog().ok());
  EXPECT_GT(watched_.lists, 0);
  EXPECT_THAT(Open(), ElementsAre("one"));
}

}  // namespace
}  // namespace still::store
