// The catalog is an index: deleted after every kind of operation and made again from packs, manifests and notes, it has
// the same rows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::IsEmpty;

// Every row of what can be rebuilt, as text. Numbers of packs are the catalog's own: their names stand for them.
std::vector<std::string> RowsOf(const std::string& path) {
  sqlite3* db = nullptr;
  EXPECT_EQ(sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READONLY, nullptr), SQLITE_OK);
  std::vector<std::string> rows;
  for (const char* select :
       {"SELECT 'pack', hex(name), kind, size, created, blocks, nodes, overhead, hex(hooks), condemned FROM pack",
        "SELECT 'node', hex(id), (SELECT hex(name) FROM pack WHERE number = node.pack), ordinal FROM node",
        "SELECT 'snapshot', id, name, session, session_id, point, committed, kind, hex(manifest) FROM snapshot",
        "SELECT 'label', snapshot, key, value FROM label",
        "SELECT 'image', snapshot, name, role, size, hex(root), bitmap FROM image"}) {
    sqlite3_stmt* statement = nullptr;
    EXPECT_EQ(sqlite3_prepare_v2(db, select, -1, &statement, nullptr), SQLITE_OK) << sqlite3_errmsg(db);
    while (sqlite3_step(statement) == SQLITE_ROW) {
      std::string row;
      for (int i = 0; i < sqlite3_column_count(statement); ++i) {
        const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement, i));
        absl::StrAppend(&row, text == nullptr ? "NULL" : text, "|");
      }
      rows.push_back(std::move(row));
    }
    sqlite3_finalize(statement);
  }
  sqlite3_close(db);
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<std::string> Differing(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::string> differing;
  std::set_symmetric_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(differing));
  return differing;
}

class CatalogRebuildTest : public ::testing::TestWithParam<bool> {
 protected:
  CatalogRebuildTest() {
    options_ = {.path = JoinPath(directory_.path(), "repository"),
                .workers = 1,
                .key_cost = {.passes = 1, .memory_kib = 8192},
                .catalog_path = JoinPath(directory_.path(), "catalog.db")};
    if (GetParam()) options_.credentials.passphrase = "secret";
    repository_ = MustMake(options_);
  }

  // Closes the repository, deletes its catalog, and opens it again.
  void Compare(const char* after) {
    SCOPED_TRACE(after);
    // What others left, as packs of abandoned captures, is found when the repository is opened.
    repository_.reset();
    repository_ = MustOpen(options_);
    repository_.reset();
    const std::vector<std::string> before = RowsOf(options_.catalog_path);
    for (const char* suffix : {"", "-wal", "-shm"}) {
      ASSERT_TRUE(RemoveFile(absl::StrCat(options_.catalog_path, suffix)).ok());
    }
    repository_ = MustOpen(options_);
    EXPECT_THAT(Differing(RowsOf(options_.catalog_path), before), IsEmpty());
    // And once more by the command, with the file there.
    ASSERT_TRUE(repository_->RebuildCatalog().ok());
    EXPECT_THAT(Differing(RowsOf(options_.catalog_path), before), IsEmpty());
    rows_ = before.size();
  }
  std::string Store(const std::string& name, const std::string& content, const manifest::Image* parent = nullptr) {
    auto id = StoreImage(*repository_, name, content, parent);
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or("");
  }

  TemporaryDirectory directory_;
  RepositoryOptions options_;
  std::unique_ptr<Repository> repository_;
  size_t rows_ = 0;
};

TEST_P(CatalogRebuildTest, HasTheSameRowsAfterEveryKindOfOperation) {
  Compare("init");
  EXPECT_EQ(rows_, 0);
  const std::string base = MakeImage(1, 4 * kMiB);
  const std::string one = Store("one", base);
  Compare("capture");
  EXPECT_GT(rows_, 4);
  manifest::Snapshot parent = *repository_->FindSnapshot("one");
  Store("two", ChangeImage(base, 2, 50), &parent.images(0));
  Compare("incremental capture");
  Store("", MakeImage(3, kMiB));
  Compare("capture without a name");
  {
    auto snapshot = repository_->BeginSnapshot().value();
    auto image = snapshot->BeginImage({.name = "vda", .size = kMiB}).value();
    ASSERT_TRUE(image->Write(0, MakeImage(4, kMiB)).ok());
    ASSERT_TRUE(image->Finish().ok());
  }
  Compare("abandoned capture");
  ASSERT_TRUE(repository_->HoldSnapshot(one, "audit").ok());
  Compare("hold");
  ASSERT_TRUE(repository_->ReleaseSnapshot(one).ok());
  Compare("release");
  ASSERT_TRUE(repository_->Forget({one}).ok());
  Compare("forget");
  {
    auto reader = repository_->OpenImage(*repository_->FindSnapshot("two"), "vda").value();
    ASSERT_TRUE(repository_->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 1}).ok());
    EXPECT_GT(repository_->Stats()->condemned_packs, 0);
  }
  Compare("prune beside a reader");
  ASSERT_TRUE(repository_->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 1}).ok());
  EXPECT_EQ(repository_->Stats()->condemned_packs, 0);
  Compare("prune");
  ASSERT_TRUE(repository_->Repair({}).ok());
  Compare("repair");
}

INSTANTIATE_TEST_SUITE_P(PlainAndEncrypted, CatalogRebuildTest, ::testing::Bool());

TEST(CatalogTest, ADamagedOneIsRebuiltWhenOpening) {
  TemporaryDirectory directory;
  RepositoryOptions options = {.path = directory.path(), .workers = 1};
  const std::string content = MakeImage(5, kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(options), "one", content).ok());
  {
    std::fstream file(JoinPath(directory.path(), "catalog.db"), std::ios::in | std::ios::out | std::ios::binary);
    file.write("not a database", 14);
  }
  EXPECT_TRUE(absl::IsDataLoss(Repository::Open(options).status()));
  options.rebuild_catalog = true;
  EXPECT_EQ(LoadImage(*MustOpen(options), "one").value(), content);
  options.rebuild_catalog = false;
  EXPECT_EQ(LoadImage(*MustOpen(options), "one").value(), content);
}

TEST(CatalogTest, TwoSnapshotsOfOneNameAreBothListedByWhoeverOpensNext) {
  TemporaryDirectory directory;
  RepositoryOptions options = {.path = JoinPath(directory.path(), "repository"),
                               .workers = 1,
                               .catalog_path = JoinPath(directory.path(), "a.db")};
  auto first = MustMake(options);
  options.catalog_path = JoinPath(directory.path(), "b.db");
  auto second = MustOpen(options);
  // Each has a catalog of its own, as two hosts with an encrypted repository do, and both begin before either commits.
  auto one = first->BeginSnapshot().value();
  auto two = second->BeginSnapshot().value();
  for (auto* snapshot : {one.get(), two.get()}) {
    auto image = snapshot->BeginImage({.name = "vda", .size = kMiB}).value();
    ASSERT_TRUE(image->Write(0, MakeImage(snapshot == one.get() ? 6 : 7, kMiB)).ok());
    ASSERT_TRUE(image->Finish().ok());
  }
  for (auto* snapshot : {one.get(), two.get()}) {
    auto id = snapshot->Commit(Manifest("same"));
    ASSERT_TRUE(id.ok()) << id.status();
  }
  options.catalog_path = JoinPath(directory.path(), "c.db");
  auto third = MustOpen(options);
  ASSERT_NE(third, nullptr);
  EXPECT_EQ(third->ListSnapshots()->size(), 2);
  const std::string content = LoadImage(*third, "same").value();
  EXPECT_TRUE(content == MakeImage(6, kMiB) || content == MakeImage(7, kMiB));
}

}  // namespace
}  // namespace still::store
