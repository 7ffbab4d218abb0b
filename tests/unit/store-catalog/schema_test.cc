// Migrations: from nothing, from each released version, from newer ones, and halfway.
#include "store/catalog/schema.h"

#include <fcntl.h>
#include <stdlib.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/catalog/catalog.h"
#include "store/sqlite/migrate.h"

namespace still::store {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

class SchemaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-schema-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = JoinPath(dir_, "catalog.db");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  absl::StatusOr<Database> OpenDatabase() { return Database::Open(path_, kCatalogKind, absl::Seconds(10)); }
  // Every table, index and view with the statement that made it.
  static std::string SchemaOf(Database& db) {
    std::string schema;
    absl::StatusOr<Statement> select = db.Prepare("SELECT coalesce(sql, name) FROM sqlite_schema ORDER BY type, name");
    EXPECT_TRUE(select.ok());
    for (absl::StatusOr<bool> row = select->Step(); row.ok() && *row; row = select->Step()) {
      absl::StrAppend(&schema, select->Bytes(0), "\n");
    }
    return schema;
  }
  std::string dir_;
  std::string path_;
};

constexpr char kFirst[] = "CREATE TABLE t (a INTEGER) STRICT;";
constexpr char kSecond[] = "ALTER TABLE t ADD COLUMN b INTEGER DEFAULT 7;";
constexpr char kThird[] = "CREATE INDEX t_by_b ON t(b);";
constexpr char kFailsHalfway[] = "ALTER TABLE t ADD COLUMN c INTEGER; CREATE TABLE t (a INTEGER);";

TEST_F(SchemaTest, EachMigrationRunsOnceInOrder) {
  absl::StatusOr<Database> db = OpenDatabase();
  ASSERT_TRUE(db.ok());
  const char* const all[] = {kFirst, kSecond, kThird};
  for (size_t known = 1; known <= 3; ++known) {
    for (int again = 0; again < 2; ++again) {
      ASSERT_TRUE(Migrate(*db, absl::MakeSpan(all, known)).ok());
      EXPECT_EQ(*db->QueryInt("PRAGMA user_version"), static_cast<int64_t>(known));
    }
    if (known == 1) {
      ASSERT_TRUE(db->Execute("INSERT INTO t (a) VALUES (1)").ok());
    }
  }
  EXPECT_EQ(*db->QueryInt("SELECT b FROM t"), 7) << "rows of the first version are still there";
}

TEST_F(SchemaTest, AMigrationThatFailsLeavesTheOldVersion) {
  absl::StatusOr<Database> db = OpenDatabase();
  ASSERT_TRUE(db.ok());
  const char* const good[] = {kFirst};
  const char* const bad[] = {kFirst, kSecond, kFailsHalfway};
  ASSERT_TRUE(Migrate(*db, good).ok());
  std::string before = SchemaOf(*db);
  EXPECT_FALSE(Migrate(*db, bad).ok());
  EXPECT_EQ(*db->QueryInt("PRAGMA user_version"), 1);
  EXPECT_EQ(SchemaOf(*db), before);
  const char* const mended[] = {kFirst, kSecond, kThird};
  EXPECT_TRUE(Migrate(*db, mended).ok());
}

TEST_F(SchemaTest, ANewerFileIsRefusedAndLeftAlone) {
  ASSERT_TRUE(Catalog::Open({.path = path_}).ok());
  {
    absl::StatusOr<Database> db = OpenDatabase();
    ASSERT_TRUE(db.ok() && db->Execute("PRAGMA user_version = 1000").ok());
  }
  absl::Status status = Catalog::Open({.path = path_}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("newer"));
  EXPECT_EQ(Catalog::Rebuild({.path = path_}, [](auto&) { return absl::OkStatus(); }).status().code(),
            absl::StatusCode::kFailedPrecondition)
      << "a rebuild must not destroy what a newer version keeps";
}

TEST_F(SchemaTest, TheDatabaseOfAnotherProgramIsRefused) {
  {
    absl::StatusOr<Database> db = OpenDatabase();
    ASSERT_TRUE(db.ok() && db->Execute("CREATE TABLE theirs (a INTEGER)").ok());
  }
  EXPECT_EQ(Catalog::Open({.path = path_}).status().code(), absl::StatusCode::kFailedPrecondition);
}

// One file for each version that was ever released; never regenerated.
class GoldenCatalogTest : public SchemaTest, public ::testing::WithParamInterface<int> {};

TEST_P(GoldenCatalogTest, OpensWithEverythingInIt) {
  std::string fresh_schema;
  {
    ASSERT_TRUE(Catalog::Open({.path = path_}).ok());
    absl::StatusOr<Database> db = OpenDatabase();
    fresh_schema = SchemaOf(*db);
  }
  ASSERT_TRUE(RemoveTree(dir_).ok() && MakeDirectories(dir_).ok());
  {
    std::string sql = *ReadFile(JoinPath(STILL_GOLDEN_DIR, absl::StrCat("v", GetParam(), ".sql")), 1 << 20);
    absl::StatusOr<Database> db = OpenDatabase();
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE(db->Execute(sql.c_str()).ok()) << db->Execute(sql.c_str());
    ASSERT_EQ(*db->QueryInt("PRAGMA user_version"), GetParam());
  }
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = path_});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_TRUE((*catalog)->Check().ok());

  std::vector<CatalogSnapshot> snapshots = *(*catalog)->ListSnapshots();
  ASSERT_THAT(snapshots, SizeIs(2));
  EXPECT_EQ(snapshots[0].name, "");
  EXPECT_EQ(snapshots[1].name, "before-upgrade");
  EXPECT_EQ(snapshots[1].id, "00112233445566778899aabbccddeeff");
  EXPECT_EQ(snapshots[1].session, "web");
  EXPECT_EQ(snapshots[1].point_unix_ns, 1700000000000000000);
  EXPECT_EQ(snapshots[1].manifest, std::string("\x0a\x00\xff", 3));
  EXPECT_EQ(snapshots[1].labels.at("keep"), "for ever");
  EXPECT_EQ(snapshots[1].sequence, GetParam() < 5 ? 0 : 2);
  EXPECT_EQ(snapshots[1].host_id, GetParam() < 4 ? "" : "0123456789abcdef0123456789abcdef");
  EXPECT_EQ((*catalog)->FindListing("snapshots/")->stamp, GetParam() < 6 ? "" : "snapshots");
  EXPECT_THAT(*(*catalog)->ListUnsequenced(), SizeIs(GetParam() < 5 ? 2 : 0));
  EXPECT_EQ(*(*catalog)->AsksForNotes(), GetParam() >= 7);
  EXPECT_THAT(*(*catalog)->ListVanished(), SizeIs(GetParam() < 7 ? 0 : 1));
  EXPECT_THAT(*(*catalog)->ListSightings(), SizeIs(GetParam() < 7 ? 0 : 1));
  ASSERT_THAT(snapshots[1].images, SizeIs(1));
  EXPECT_EQ(snapshots[1].images[0].size, 4294967296u);
  EXPECT_EQ(snapshots[1].images[0].bitmap, "still-1");
  std::vector<NodePlace> places = *(*catalog)->FindNode(std::string(32, '\x22'));
  ASSERT_THAT(places, SizeIs(1));
  EXPECT_EQ(places[0].pack, std::string(16, '\x11'));
  CatalogPack pack = **(*catalog)->FindPack(std::string(16, '\x11'));
  EXPECT_EQ(pack.hooks, "hooks");
  EXPECT_EQ(pack.condemned, absl::FromUnixSeconds(1700000001));

  absl::StatusOr<Database> db = OpenDatabase();
  EXPECT_EQ(SchemaOf(*db), fresh_schema) << "a migrated catalog must not differ from a new one";
}

INSTANTIATE_TEST_SUITE_P(Versions, GoldenCatalogTest,
                         ::testing::Range(1, static_cast<int>(kCatalogKind.migrations.size()) + 1));

TEST(CatalogMigrationsTest, ThereIsAGoldenFileForEachVersion) {
  for (size_t version = 1; version <= kCatalogKind.migrations.size(); ++version) {
    EXPECT_TRUE(PathExists(JoinPath(STILL_GOLDEN_DIR, absl::StrCat("v", version, ".sql")))) << version;
  }
}

}  // namespace
}  // namespace still::store
