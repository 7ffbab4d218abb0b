// The runs of schedules, and what is remembered between processes.
#include <stdlib.h>

#include <memory>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/catalog/catalog.h"

namespace still::store {
namespace {

using ::testing::SizeIs;

class RunsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-runs-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::unique_ptr<Catalog> Open() {
    absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = JoinPath(dir_, "catalog.db")});
    EXPECT_TRUE(catalog.ok()) << catalog.status();
    return catalog.ok() ? *std::move(catalog) : nullptr;
  }
  std::string dir_;
};

TEST_F(RunsTest, RunsAreKeptNewestFirstAndTrimmedButForTheLastOfEachPair) {
  std::unique_ptr<Catalog> catalog = Open();
  std::vector<int64_t> ids;
  for (int i = 0; i < 6; ++i) {
    absl::Time at = absl::FromUnixSeconds(100 + i);
    absl::StatusOr<int64_t> id = catalog->AddRun({.schedule = "nightly",
                                                  .kind = "capture",
                                                  .session = i % 2 == 0 ? "web" : "db",
                                                  .planned = at,
                                                  .planned_until = at,
                                                  .started = at});
    ASSERT_TRUE(id.ok()) << id.status();
    ids.push_back(*id);
  }
  CatalogRun run = **catalog->FindRun(ids[4]);
  EXPECT_EQ(run.session, "web");
  EXPECT_EQ(run.outcome, RunOutcome::kRunning);
  EXPECT_FALSE(run.ended.has_value());
  for (int64_t id : ids) {
    CatalogRun ended = **catalog->FindRun(id);
    ended.ended = *ended.started + absl::Seconds(1);
    ended.outcome = id == ids[4] ? RunOutcome::kSucceeded : RunOutcome::kFailed;
    ended.freeze_us = 7;
    ended.bytes_stored = 9;
    ASSERT_TRUE(catalog->UpdateRun(ended).ok());
  }
  std::vector<CatalogRun> failed = *catalog->ListRuns({.session = "web", .outcome = RunOutcome::kFailed});
  ASSERT_THAT(failed, SizeIs(2));
  EXPECT_EQ(failed[0].id, ids[2]);
  EXPECT_EQ(failed[0].freeze_us, 7u);
  EXPECT_EQ(failed[0].bytes_stored, 9u);
  EXPECT_THAT(*catalog->ListRuns({.schedule = "hourly"}), SizeIs(0));
  EXPECT_EQ(catalog->UpdateRun({.id = 99}).code(), absl::StatusCode::kNotFound);

  ASSERT_TRUE(catalog->TrimRuns(absl::FromUnixSeconds(1000)).ok());
  EXPECT_THAT(*catalog->ListRuns({}), SizeIs(2)) << "what has been planned last is what the next is counted from";
  std::vector<RunCursor> cursors = *catalog->RunCursors();
  ASSERT_THAT(cursors, SizeIs(2));
  EXPECT_EQ(cursors[0].session, "db");
  EXPECT_EQ(cursors[0].planned_until, absl::FromUnixSeconds(105));
  EXPECT_EQ(cursors[1].planned_until, absl::FromUnixSeconds(104));
}

TEST_F(RunsTest, WhatIsRememberedOutlivesTheProcess) {
  ASSERT_TRUE(Open()->Remember("alert/web", "1").ok());
  std::unique_ptr<Catalog> catalog = Open();
  EXPECT_EQ(catalog->Remembered()->at("alert/web"), "1");
  ASSERT_TRUE(catalog->Remember("alert/web", "2").ok());
  EXPECT_EQ(catalog->Remembered()->at("alert/web"), "2");
  ASSERT_TRUE(catalog->Remember("alert/web", "").ok());
  EXPECT_THAT(*catalog->Remembered(), SizeIs(0));
}

}  // namespace
}  // namespace still::store
