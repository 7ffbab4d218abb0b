// How SQLite means to answer what is asked of catalogs with a hundred thousand snapshots: from indexes, without reading the
// table with its manifests, and without sorting.
#include <stdlib.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/catalog/catalog.h"
#include "store/catalog/schema.h"
#include "store/catalog/statements.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CatalogPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = JoinPath(::testing::TempDir(), "still-plan-XXXXXX");
    ASSERT_NE(::mkdtemp(dir_.data()), nullptr);
    path_ = JoinPath(dir_, "catalog.db");
    ASSERT_TRUE(Catalog::Open({.path = path_}).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  // One line for each step.
  std::string PlanOf(const std::string& sql) {
    absl::StatusOr<Database> db = Database::Open(path_, kCatalogKind, absl::Seconds(10));
    EXPECT_TRUE(db.ok()) << db.status();
    const std::string explain = absl::StrCat("EXPLAIN QUERY PLAN ", sql);
    absl::StatusOr<Statement> select = db->Prepare(explain.c_str());
    EXPECT_TRUE(select.ok()) << select.status();
    std::string plan;
    for (absl::StatusOr<bool> row = select->Step(); row.ok() && *row; row = select->Step()) {
      absl::StrAppend(&plan, select->Bytes(3), "\n");
    }
    return plan;
  }
  std::string dir_;
  std::string path_;
};

TEST_F(CatalogPlanTest, TheSnapshotsOfOneSessionAreFound) {
  EXPECT_THAT(PlanOf(kSnapshotsOfSession), AllOf(HasSubstr("SEARCH snapshot USING INDEX snapshot_summary (session=?)"),
                                                 Not(HasSubstr("SCAN")), Not(HasSubstr("TEMP B-TREE"))));
}

TEST_F(CatalogPlanTest, SummariesComeFromTheIndexAloneAndInItsOrder) {
  EXPECT_THAT(PlanOf(kSummaries), AllOf(HasSubstr("COVERING INDEX snapshot_summary"), Not(HasSubstr("TEMP B-TREE"))));
}

TEST_F(CatalogPlanTest, NamesComeFromTheIndexAlone) {
  EXPECT_THAT(PlanOf(kSnapshotNames), HasSubstr("COVERING INDEX snapshot_summary"));
}

// The control: the plan of what must not happen looks different.
TEST_F(CatalogPlanTest, AScanWouldBeSeen) {
  EXPECT_THAT(PlanOf("SELECT manifest FROM snapshot ORDER BY point"),
              AllOf(HasSubstr("SCAN"), HasSubstr("TEMP B-TREE"), Not(HasSubstr("COVERING"))));
}

}  // namespace
}  // namespace still::store
