// Schedules, their runs, what is remembered between processes; and what may happen to the file.
#include "store/book/book.h"

#include <stdlib.h>
#include <unistd.h>

#include <memory>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::SizeIs;

class BookTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-book-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::unique_ptr<Book> Open() {
    absl::StatusOr<std::unique_ptr<Book>> book = Book::Open({.path = JoinPath(dir_, "book.db")});
    EXPECT_TRUE(book.ok()) << book.status();
    return book.ok() ? *std::move(book) : nullptr;
  }
  std::string dir_;
};

TEST_F(BookTest, SchedulesAreKept) {
  std::unique_ptr<Book> book = Open();
  ScheduleRow schedule{
      .name = "nightly", .session = "web", .timing = "daily 02:00", .retention = "daily=7", .settings = "{}"};
  ASSERT_TRUE(book->PutSchedule(schedule).ok());
  schedule.enabled = false;
  schedule.last_run = absl::FromUnixSeconds(5);
  ASSERT_TRUE(book->PutSchedule(schedule).ok());
  std::vector<ScheduleRow> schedules = *book->ListSchedules();
  ASSERT_THAT(schedules, SizeIs(1));
  EXPECT_FALSE(schedules[0].enabled);
  EXPECT_EQ(schedules[0].last_run, absl::FromUnixSeconds(5));
  EXPECT_FALSE(schedules[0].next_run.has_value());
  EXPECT_TRUE(book->RemoveSchedule("nightly").ok());
  EXPECT_EQ(book->RemoveSchedule("nightly").code(), absl::StatusCode::kNotFound);
}

TEST_F(BookTest, RunsAreKeptNewestFirstAndTrimmedButForTheLastOfEachPair) {
  std::unique_ptr<Book> book = Open();
  std::vector<int64_t> ids;
  for (int i = 0; i < 6; ++i) {
    absl::Time at = absl::FromUnixSeconds(100 + i);
    absl::StatusOr<int64_t> id = book->AddRun({.schedule = "nightly",
                                               .kind = "capture",
                                               .session = i % 2 == 0 ? "web" : "db",
                                               .planned = at,
                                               .planned_until = at,
                                               .started = at});
    ASSERT_TRUE(id.ok()) << id.status();
    ids.push_back(*id);
  }
  RunRow run = **book->FindRun(ids[4]);
  EXPECT_EQ(run.session, "web");
  EXPECT_EQ(run.outcome, RunOutcome::kRunning);
  EXPECT_FALSE(run.ended.has_value());
  for (int64_t id : ids) {
    RunRow ended = **book->FindRun(id);
    ended.ended = *ended.started + absl::Seconds(1);
    ended.outcome = id == ids[4] ? RunOutcome::kSucceeded : RunOutcome::kFailed;
    ended.freeze_us = 7;
    ended.bytes_stored = 9;
    ASSERT_TRUE(book->UpdateRun(ended).ok());
  }
  std::vector<RunRow> failed = *book->ListRuns({.session = "web", .outcome = RunOutcome::kFailed});
  ASSERT_THAT(failed, SizeIs(2));
  EXPECT_EQ(failed[0].id, ids[2]);
  EXPECT_EQ(failed[0].freeze_us, 7u);
  EXPECT_EQ(failed[0].bytes_stored, 9u);
  EXPECT_THAT(*book->ListRuns({.schedule = "hourly"}), SizeIs(0));
  EXPECT_EQ(book->UpdateRun({.id = 99}).code(), absl::StatusCode::kNotFound);

  ASSERT_TRUE(book->TrimRuns(absl::FromUnixSeconds(1000)).ok());
  EXPECT_THAT(*book->ListRuns({}), SizeIs(2)) << "what has been planned last is what the next is counted from";
  std::vector<RunCursor> cursors = *book->RunCursors();
  ASSERT_THAT(cursors, SizeIs(2));
  EXPECT_EQ(cursors[0].session, "db");
  EXPECT_EQ(cursors[0].planned_until, absl::FromUnixSeconds(105));
  EXPECT_EQ(cursors[1].planned_until, absl::FromUnixSeconds(104));
}

TEST_F(BookTest, WhatIsRememberedOutlivesTheProcess) {
  ASSERT_TRUE(Open()->Remember("alert/web", "1").ok());
  std::unique_ptr<Book> book = Open();
  EXPECT_EQ(book->Remembered()->at("alert/web"), "1");
  ASSERT_TRUE(book->Remember("alert/web", "2").ok());
  EXPECT_EQ(book->Remembered()->at("alert/web"), "2");
  ASSERT_TRUE(book->Remember("alert/web", "").ok());
  EXPECT_THAT(*book->Remembered(), SizeIs(0));
  ASSERT_TRUE(book->RememberAll({{"pair/a", "1"}, {"pair/b", "2"}}).ok());
  ASSERT_TRUE(book->RememberAll({{"pair/a", ""}, {"pair/b", "3"}}).ok());
  EXPECT_THAT(*Open()->Remembered(), ElementsAre(Pair("pair/b", "3")));
}

TEST_F(BookTest, EachWayOfAskingForRunsFindsTheSame) {
  std::unique_ptr<Book> book = Open();
  for (int i = 0; i < 12; ++i) {
    RunRow run{.schedule = i % 2 == 0 ? "nightly" : "hourly", .session = i % 3 == 0 ? "web" : "db"};
    run.outcome = i % 4 < 2 ? RunOutcome::kSucceeded : RunOutcome::kFailed;
    ASSERT_TRUE(book->AddRun(run).ok());
  }
  const std::vector<RunRow> all = *book->ListRuns({});
  ASSERT_THAT(all, SizeIs(12));
  for (const char* schedule : {"", "nightly"}) {
    for (const char* session : {"", "web"}) {
      for (std::optional<RunOutcome> outcome : {std::optional<RunOutcome>(), std::optional(RunOutcome::kFailed)}) {
        std::vector<int64_t> expected;
        for (const RunRow& run : all) {
          if ((*schedule == 0 || run.schedule == schedule) && (*session == 0 || run.session == session) &&
              (!outcome.has_value() || run.outcome == *outcome)) {
            expected.push_back(run.id);
          }
        }
        std::vector<int64_t> found;
        const std::vector<RunRow> runs =
            *book->ListRuns({.schedule = schedule, .session = session, .outcome = outcome});
        for (const RunRow& run : runs) found.push_back(run.id);
        EXPECT_EQ(found, expected) << schedule << " " << session;
      }
    }
  }
}

TEST_F(BookTest, ItsDirectoryIsMadeAndMayBeReachedByALink) {
  ASSERT_TRUE(MakeDirectories(JoinPath(dir_, "elsewhere")).ok());
  ASSERT_EQ(::symlink(JoinPath(dir_, "elsewhere").c_str(), JoinPath(dir_, "state").c_str()), 0);
  const std::string path = BookPath(JoinPath(dir_, "state/deeper"));
  ASSERT_TRUE(Book::Open({.path = path}).ok()) << Book::Open({.path = path}).status();
  EXPECT_TRUE(PathExists(JoinPath(dir_, "elsewhere/deeper/book.db")));
}

TEST_F(BookTest, AnOpenBookNoticesThatItsFileIsGone) {
  std::unique_ptr<Book> book = Open();
  ASSERT_TRUE(RemoveFile(JoinPath(dir_, "book.db")).ok());
  EXPECT_EQ(book->AddRun({.schedule = "nightly"}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(book->ListSchedules().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(BookTest, ADamagedFileSaysWhatToDo) {
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, "book.db"), std::string(8192, 'x')).ok());
  absl::Status status = Book::Open({.path = JoinPath(dir_, "book.db")}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(), HasSubstr("The book"));
}

}  // namespace
}  // namespace still::store
