// What every RunBook does: the one that is kept in the state directory, and the one that the scheduler's tests go by. Where
// they differ, those tests prove nothing.
#include <stdlib.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/host_time_zone.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/stored_book.h"
#include "tests/unit/schedule/fake_world.h"

namespace still::schedule {
namespace {

using store::RunOutcome;
using store::RunRow;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

class StoredBookInAFolder {
 public:
  StoredBookInAFolder() {
    EXPECT_NE(::mkdtemp(root_.data()), nullptr);
    absl::StatusOr<std::unique_ptr<store::Book>> book = store::Book::Open({.path = store::BookPath(root_)});
    EXPECT_TRUE(book.ok()) << book.status();
    kept_ = *std::move(book);
    book_ = std::make_unique<StoredBook>(*kept_, HostTimeZone::Real());
  }
  ~StoredBookInAFolder() {
    book_.reset();
    kept_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  RunBook& book() { return *book_; }

 private:
  std::string root_ = JoinPath(::testing::TempDir(), "still-run-book-XXXXXX");
  std::unique_ptr<store::Book> kept_;
  std::unique_ptr<StoredBook> book_;
};

class BookInMemory {
 public:
  RunBook& book() { return book_; }

 private:
  MemoryBook book_;
};

template <typename Made>
class RunBookTest : public ::testing::Test {
 protected:
  static absl::Time At(int64_t second) { return absl::FromUnixSeconds(second); }
  // Gives its id.
  int64_t Add(const std::string& session, int64_t planned_until, uint64_t occurrences,
              RunOutcome outcome = RunOutcome::kSucceeded) {
    absl::StatusOr<int64_t> id = book().AddRun({.schedule = "nightly",
                                                .kind = "capture",
                                                .session = session,
                                                .planned = At(planned_until),
                                                .planned_until = At(planned_until),
                                                .occurrences = occurrences,
                                                .outcome = outcome});
    EXPECT_TRUE(id.ok()) << id.status();
    return id.value_or(0);
  }
  std::map<std::string, absl::Time> Cursors() {
    std::map<std::string, absl::Time> cursors;
    absl::StatusOr<std::vector<store::RunCursor>> all = book().Cursors();
    EXPECT_TRUE(all.ok()) << all.status();
    for (const store::RunCursor& one : *all) cursors[one.session] = one.planned_until;
    return cursors;
  }
  RunBook& book() { return made_.book(); }

 private:
  Made made_;
};

using Books = ::testing::Types<StoredBookInAFolder, BookInMemory>;
TYPED_TEST_SUITE(RunBookTest, Books);

// Else an occurrence that nobody has begun would be taken for dealt with after a restart.
TYPED_TEST(RunBookTest, ARunByHandOrASecondTryCountsNoOccurrence) {
  this->Add("web", 100, 1);
  this->Add("web", 300, 2, RunOutcome::kMissed);
  this->Add("web", 200, 1);
  this->Add("web", 900, 0);
  this->Add("by-hand-only", 900, 0);
  EXPECT_THAT(this->Cursors(), ElementsAre(Pair("web", this->At(300))));
}

TYPED_TEST(RunBookTest, RunsAreFoundAndThoseThatGoOn) {
  const int64_t one = this->Add("web", 100, 1, RunOutcome::kRunning);
  const int64_t two = this->Add("db", 100, 1, RunOutcome::kRunning);
  RunRow ended = **this->book().FindRun(one);
  EXPECT_EQ(ended.session, "web");
  ended.outcome = RunOutcome::kFailed;
  ASSERT_TRUE(this->book().UpdateRun(ended).ok());
  const std::vector<RunRow> running = *this->book().Running();
  ASSERT_EQ(running.size(), 1u);
  EXPECT_EQ(running[0].id, two);
  EXPECT_FALSE(this->book().FindRun(two + 1)->has_value());
  EXPECT_EQ(this->book().UpdateRun({.id = two + 1}).code(), absl::StatusCode::kNotFound);
}

TYPED_TEST(RunBookTest, AnEmptyWordIsForgotten) {
  ASSERT_TRUE(this->book().Remember("a", "1").ok());
  ASSERT_TRUE(this->book().RememberAll({{"a", ""}, {"b", "2"}}).ok());
  EXPECT_THAT(*this->book().Remembered(), ElementsAre(Pair("b", "2")));
  ASSERT_TRUE(this->book().Remember("b", "").ok());
  EXPECT_THAT(*this->book().Remembered(), IsEmpty());
}

}  // namespace
}  // namespace still::schedule
