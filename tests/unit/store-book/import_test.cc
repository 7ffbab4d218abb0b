// What versions without a book left in a repository's catalog: taken over once, whole, and never again.
#include <stdlib.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/book/book.h"
#include "store/catalog/catalog.h"
#include "store/catalog/schema.h"

namespace still::store {
namespace {

using ::testing::SizeIs;

constexpr char kRepository[] = "0123456789abcdef0123456789abcdef";

class ImportTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-import-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    catalog_ = JoinPath(dir_, "catalog.db");
    MakeCatalog(catalog_);
    book_ = Open();
  }
  void TearDown() override {
    book_.reset();
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  static void MakeCatalog(const std::string& path) {
    const std::string golden = JoinPath(STILL_GOLDEN_DIR, absl::StrCat("catalog/v", GetParam(), ".sql"));
    std::string sql = *ReadFile(golden, 1 << 20);
    absl::StatusOr<Database> db = Database::Open(path, kCatalogKind, absl::Seconds(10));
    ASSERT_TRUE(db.ok()) << db.status();
    const absl::Status made = db->Execute(sql.c_str());
    ASSERT_TRUE(made.ok()) << made;
  }
  std::unique_ptr<Book> Open() const {
    absl::StatusOr<std::unique_ptr<Book>> book = Book::Open({.path = BookPath(dir_)});
    EXPECT_TRUE(book.ok()) << book.status();
    return book.ok() ? *std::move(book) : nullptr;
  }
  // Of the golden catalogs.
  static size_t Runs() { return GetParam() < 3 ? 0 : 1; }
  static size_t Drills() { return GetParam() < 2 ? 0 : 1; }

  std::string dir_;
  std::string catalog_;
  std::unique_ptr<Book> book_;
};

TEST_P(ImportTest, EverythingComesOnceAndTheCatalogStaysAsItIs) {
  for (int again = 0; again < 2; ++again) {
    const absl::Status imported = book_->ImportOnce(kRepository, {catalog_});
    ASSERT_TRUE(imported.ok()) << imported;
    const std::vector<ScheduleRow> schedules = *book_->ListSchedules();
    ASSERT_THAT(schedules, SizeIs(1));
    EXPECT_EQ(schedules[0].name, "nightly");
    EXPECT_EQ(schedules[0].timing, "daily 02:00");
    EXPECT_EQ(schedules[0].next_run, absl::FromUnixSeconds(1700000002));
    EXPECT_THAT(*book_->ListRuns({}), SizeIs(Runs()));
    EXPECT_THAT(*book_->ListDrills(9), SizeIs(Drills()));
    EXPECT_THAT(*book_->Remembered(), SizeIs(Runs()));
  }
  if (Runs() == 1) {
    EXPECT_EQ((*book_->FindRun(1))->pause_us, 2100u) << "with the id that its worker's lock has";
  }
  if (Drills() == 1) {
    EXPECT_EQ(book_->ListDrills(9)->at(0).place, "drill-0a1b2c3d");
  }
  absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = catalog_});
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  EXPECT_THAT(*(*catalog)->ListSnapshots(), SizeIs(2));
}

TEST_P(ImportTest, WhatWasRemovedAfterwardsDoesNotComeBack) {
  ASSERT_TRUE(book_->ImportOnce(kRepository, {catalog_}).ok());
  ASSERT_TRUE(book_->RemoveSchedule("nightly").ok());
  book_ = Open();
  ASSERT_TRUE(book_->ImportOnce(kRepository, {catalog_}).ok());
  EXPECT_THAT(*book_->ListSchedules(), SizeIs(0));
}

TEST_P(ImportTest, NothingOfAFullBookIsReplaced) {
  ASSERT_TRUE(book_->PutSchedule({.name = "nightly", .timing = "mine"}).ok());
  ASSERT_TRUE(book_->AddRun({.schedule = "nightly", .message = "mine"}).ok());
  const std::string second = JoinPath(dir_, "second.db");
  MakeCatalog(second);
  const absl::Status imported = book_->ImportOnce(kRepository, {catalog_, second});
  ASSERT_TRUE(imported.ok()) << imported;
  EXPECT_EQ(book_->ListSchedules()->at(0).timing, "mine");
  EXPECT_EQ((*book_->FindRun(1))->message, "mine");
  EXPECT_THAT(*book_->ListRuns({}), SizeIs(1 + 2 * Runs()));
}

TEST_P(ImportTest, SeveralProcessesAtOnceTakeItOverOnce) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([this] {
      const absl::Status imported = Open()->ImportOnce(kRepository, {catalog_});
      EXPECT_TRUE(imported.ok()) << imported;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(*book_->ListRuns({}), SizeIs(Runs()));
  EXPECT_THAT(*book_->ListDrills(9), SizeIs(Drills()));
}

TEST_P(ImportTest, OneThatCannotBeReadIsAnErrorAndTriedAgain) {
  const std::string bad = JoinPath(dir_, "bad.db");
  ASSERT_TRUE(WriteFileAtomically(bad, std::string(8192, 'x')).ok());
  EXPECT_EQ(book_->ImportOnce(kRepository, {catalog_, bad}).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(*book_->ListSchedules(), SizeIs(0)) << "all or nothing";
  ASSERT_TRUE(book_->ImportOnce(kRepository, {catalog_}).ok());
  EXPECT_THAT(*book_->ListSchedules(), SizeIs(1));
}

INSTANTIATE_TEST_SUITE_P(Versions, ImportTest, ::testing::Range(1, 4));

}  // namespace
}  // namespace still::store
