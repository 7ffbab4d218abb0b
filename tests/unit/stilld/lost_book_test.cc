// A host whose book is gone: what its schedules were, the repository's snapshots still tell.
#include <stdlib.h>

#include <memory>
#include <set>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/schedule_service.h"
#include "schedule/supervisor.h"

namespace still::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class LongAgo final : public Clock {
 public:
  absl::Time Now() const override { return Clock::Real().Now() - absl::Hours(24 * 100); }
  absl::Duration Monotonic() const override { return Clock::Real().Monotonic(); }
  void Sleep(absl::Duration duration) override { Clock::Real().Sleep(duration); }
};

class LostBookTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-lost-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    options_ = {.state = JoinPath(root_, "state"),
                .repository = {.path = JoinPath(root_, "repository"), .workers = 1, .here = kHere},
                .worker_program = "/bin/false"};
    ASSERT_TRUE(store::Repository::Init(options_.repository).ok());
    ASSERT_TRUE(MakeDirectories(JoinPath(options_.state, "sessions")).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }
  // As its schedule does; empty: by hand.
  void Take(const std::string& schedule, const HostIdentity& host = kHere, Clock* clock = nullptr) {
    store::RepositoryOptions options = options_.repository;
    options.here = host;
    if (clock != nullptr) options.clock = clock;
    auto repository = store::Repository::Open(options);
    ASSERT_TRUE(repository.ok()) << repository.status();
    auto writer = (*repository)->BeginSnapshot();
    ASSERT_TRUE(writer.ok()) << writer.status();
    manifestpb::Snapshot manifest;
    manifest.set_session("web");
    manifest.set_session_id("5e55");
    manifest.set_point_unix_ns(absl::ToUnixNanos(Clock::Real().Now()));
    if (!schedule.empty()) (*manifest.mutable_labels())["schedule"] = schedule;
    auto id = (*writer)->Commit(manifest);
    ASSERT_TRUE(id.ok()) << id.status();
  }
  void LoseTheBook() {
    for (const char* tail : {"", "-wal", "-shm"}) (void)RemoveFile(store::BookPath(options_.state) + tail);
  }
  std::unique_ptr<schedule::Supervisor> Open() {
    auto supervisor = schedule::Supervisor::Open(options_);
    EXPECT_TRUE(supervisor.ok()) << supervisor.status();
    return *std::move(supervisor);
  }
  // The schedules that `still schedule check` calls lost.
  std::set<std::string> Lost() {
    auto report = Open()->LookForTrouble("");
    EXPECT_TRUE(report.ok()) << report.status();
    std::set<std::string> lost;
    for (const auto& problem : report->problems()) {
      if (problem.kind() == "lost") lost.insert(problem.schedule());
    }
    return lost;
  }
  void Add(const std::string& name) {
    auto supervisor = Open();
    schedule::ScheduleService service(*supervisor);
    schedulepb::Schedule definition;
    definition.set_name(name);
    definition.add_sessions("web");
    definition.set_every("1h");
    schedulepb::Schedule added;
    const grpc::Status status = service.Add(nullptr, &definition, &added);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  grpc::Status Remove(const std::string& name) {
    auto supervisor = Open();
    schedule::ScheduleService service(*supervisor);
    schedulepb::Named named;
    named.set_name(name);
    schedulepb::Done done;
    return service.Remove(nullptr, &named, &done);
  }

  inline static const HostIdentity kHere = {.id = std::string(32, 'a'), .name = "alpha"};
  inline static const HostIdentity kThere = {.id = std::string(32, 'b'), .name = "beta"};
  std::string root_;
  schedule::SupervisorOptions options_;
};

TEST_F(LostBookTest, IsToldUntilEachScheduleIsAddedAgainOrRemoved) {
  Add("nightly");
  Take("nightly");
  Take("weekly");
  Take("theirs", kThere);
  Take("");
  LoseTheBook();
  EXPECT_THAT(Lost(), ElementsAre("nightly", "weekly"));
  EXPECT_THAT(Lost(), ElementsAre("nightly", "weekly")) << "as long as it is true";
  Add("nightly");
  EXPECT_THAT(Lost(), ElementsAre("weekly"));
  EXPECT_TRUE(Remove("weekly").ok());
  EXPECT_THAT(Lost(), IsEmpty());
  EXPECT_EQ(Remove("weekly").error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Remove("nightly").ok());
  EXPECT_THAT(Lost(), IsEmpty()) << "it was added to this book, and removed from it";
}

TEST_F(LostBookTest, WhatABookHadAndHasNoMoreWasRemoved) {
  EXPECT_THAT(Lost(), IsEmpty()) << "of a new repository";
  Add("nightly");
  Take("nightly");
  EXPECT_TRUE(Remove("nightly").ok());
  EXPECT_THAT(Lost(), IsEmpty());
}

// It has no note of when it began.
TEST_F(LostBookTest, TheBookOfAnEarlierVersionIsNotTakenForANewOne) {
  Add("nightly");
  Take("weekly");
  {
    auto book = store::Book::Open({.path = store::BookPath(options_.state)});
    ASSERT_TRUE(book.ok()) << book.status();
    ASSERT_TRUE((*book)->Remember("book", "").ok());
  }
  EXPECT_THAT(Lost(), IsEmpty());
}

TEST_F(LostBookTest, WhatWasGivenUpLongBeforeIsNotTold) {
  LongAgo then;
  Take("yearly", kHere, &then);
  EXPECT_THAT(Lost(), IsEmpty());
}

}  // namespace
}  // namespace still::daemon
