// Restore drills in the book.
#include <stdlib.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/book/book.h"

namespace still::store {
namespace {

using ::testing::SizeIs;

TEST(BookDrillsTest, DrillsAreKeptAndUpdated) {
  std::string directory = JoinPath(::testing::TempDir(), "still-drills-XXXXXX");
  ASSERT_NE(::mkdtemp(directory.data()), nullptr);
  std::unique_ptr<Book> book = *Book::Open({.path = JoinPath(directory, "book.db")});
  DrillRecord drill = {.snapshot_id = "ab",
                       .snapshot_name = "nightly",
                       .session = "web",
                       .place = "drill-01",
                       .started = absl::FromUnixSeconds(5),
                       .check = "true"};
  drill.id = *book->AddDrill(drill);
  DrillRecord found = book->ListDrills(10)->at(0);
  EXPECT_EQ(found.state, DrillState::kRunning);
  EXPECT_FALSE(found.ended.has_value());
  EXPECT_FALSE(found.exit_code.has_value());
  drill.state = DrillState::kPassed;
  drill.ended = absl::FromUnixSeconds(9);
  drill.restored = absl::Milliseconds(1500);
  drill.exit_code = 0;
  drill.message = "all units run";
  ASSERT_TRUE(book->UpdateDrill(drill).ok());
  ASSERT_TRUE(book->AddDrill({.session = "db"}).ok());
  std::vector<DrillRecord> drills = *book->ListDrills(10);
  ASSERT_THAT(drills, SizeIs(2));
  EXPECT_EQ(drills[0].session, "db") << "newest first";
  EXPECT_EQ(drills[1].snapshot_name, "nightly");
  EXPECT_EQ(drills[1].place, "drill-01");
  EXPECT_EQ(drills[1].state, DrillState::kPassed);
  EXPECT_EQ(drills[1].ended, absl::FromUnixSeconds(9));
  EXPECT_EQ(drills[1].restored, absl::Milliseconds(1500));
  EXPECT_EQ(drills[1].check, "true");
  EXPECT_EQ(drills[1].exit_code, 0);
  EXPECT_EQ(drills[1].message, "all units run");
  EXPECT_THAT(*book->ListDrills(1), SizeIs(1));
  EXPECT_EQ(book->UpdateDrill({.id = 99}).code(), absl::StatusCode::kNotFound);
  book.reset();
  EXPECT_TRUE(RemoveTree(directory).ok());
}

}  // namespace
}  // namespace still::store
