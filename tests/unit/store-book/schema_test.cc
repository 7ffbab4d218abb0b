// The book's versions: each that was ever released opens with everything in it.
#include "store/book/schema.h"

#include <stdlib.h>

#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/book/book.h"

namespace still::store {
namespace {

using ::testing::SizeIs;

std::string GoldenPath(size_t version) { return JoinPath(STILL_GOLDEN_DIR, absl::StrCat("book/v", version, ".sql")); }

class GoldenBookTest : public ::testing::TestWithParam<size_t> {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-book-schema-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::string dir_;
};

TEST_P(GoldenBookTest, OpensWithEverythingInIt) {
  const std::string path = JoinPath(dir_, "book.db");
  {
    std::string sql = *ReadFile(GoldenPath(GetParam()), 1 << 20);
    absl::StatusOr<Database> db = Database::Open(path, kBookKind, absl::Seconds(10));
    ASSERT_TRUE(db.ok()) << db.status();
    const absl::Status made = db->Execute(sql.c_str());
    ASSERT_TRUE(made.ok()) << made;
    ASSERT_EQ(*db->QueryInt("PRAGMA user_version"), static_cast<int64_t>(GetParam()));
  }
  absl::StatusOr<std::unique_ptr<Book>> book = Book::Open({.path = path});
  ASSERT_TRUE(book.ok()) << book.status();
  EXPECT_TRUE((*book)->Check().ok());
  const std::vector<ScheduleRow> schedules = *(*book)->ListSchedules();
  ASSERT_THAT(schedules, SizeIs(1));
  EXPECT_EQ(schedules[0].timing, "daily 02:00");
  EXPECT_EQ(schedules[0].settings, R"({"kind":"KIND_CAPTURE"})");
  const std::vector<RunRow> runs = *(*book)->ListRuns({});
  ASSERT_THAT(runs, SizeIs(1));
  EXPECT_EQ(runs[0].pause_us, 2100u);
  const std::vector<DrillRecord> drills = *(*book)->ListDrills(9);
  ASSERT_THAT(drills, SizeIs(1));
  EXPECT_EQ(drills[0].exit_code, 1);
  EXPECT_EQ(drills[0].restored, absl::Seconds(4));
  EXPECT_EQ((*book)->Remembered()->at("alert/stale/nightly/web"), "1700000000");
  // Imported already: not even looked for.
  EXPECT_TRUE((*book)->ImportOnce("00112233445566778899aabbccddeeff", {"/nonexistent"}).ok());
}

INSTANTIATE_TEST_SUITE_P(Versions, GoldenBookTest, ::testing::Range(size_t{1}, kBookKind.migrations.size() + 1));

TEST(BookMigrationsTest, ThereIsAGoldenFileForEachVersion) {
  for (size_t version = 1; version <= kBookKind.migrations.size(); ++version) {
    EXPECT_TRUE(PathExists(GoldenPath(version))) << version;
  }
}

}  // namespace
}  // namespace still::store
