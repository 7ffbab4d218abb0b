#include "schedule/machines.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::schedule {
namespace {

using ::testing::ElementsAre;

// A repository of many machines on one host, each with a few snapshots.
class MachinesTest : public ::testing::Test {
 protected:
  static constexpr int kMachines = 50;
  static constexpr int kEach = 3;

  void SetUp() override {
    // By session, as the catalog gives them; their commits go around.
    for (int machine = 0; machine < kMachines; ++machine) {
      for (int i = 0; i < kEach; ++i) {
        summaries_.push_back({.id = absl::StrCat("s", machine, "-", i),
                              .session = absl::StrCat("web-", machine),
                              .host_id = "here",
                              .machine_id = absl::StrCat("m", machine),
                              .sequence = i * kMachines + machine});
      }
    }
  }
  static snapshot::MachineIdentity Machine(int number) {
    return {.host = {.id = "here", .name = ""},
            .machine_id = absl::StrCat("m", number),
            .session_id = "",
            .name = absl::StrCat("web-", number)};
  }
  FindManifest Counted() {
    return [this](const std::string& id) -> absl::StatusOr<manifestpb::Snapshot> {
      ++read_;
      if (auto at = broken_.find(id); at != broken_.end()) return at->second;
      manifestpb::Snapshot manifest;
      manifest.set_id(id);
      return manifest;
    };
  }
  std::vector<std::string> OwnOf(int machine) {
    std::vector<std::string> ids;
    auto own = SnapshotsOf(Machine(machine), summaries_, Counted());
    EXPECT_TRUE(own.ok()) << own.status();
    for (const manifestpb::Snapshot& one : *own) ids.push_back(one.id());
    return ids;
  }

  std::vector<store::SnapshotSummary> summaries_;
  std::map<std::string, absl::Status> broken_;  // Manifests that cannot be had, and why.
  int read_ = 0;
};

TEST_F(MachinesTest, RetentionReadsTheManifestsOfItsMachineAndNoOthers) {
  EXPECT_THAT(OwnOf(7), ElementsAre("s7-0", "s7-1", "s7-2"));
  EXPECT_EQ(read_, kEach);
}

TEST_F(MachinesTest, ADrillReadsOneManifest) {
  auto newest = NewestSnapshotOf(Machine(7), summaries_, Counted());
  ASSERT_TRUE(newest.ok()) << newest.status();
  EXPECT_EQ(newest->id(), "s7-2");
  EXPECT_EQ(read_, 1);
}

TEST_F(MachinesTest, TheOrderIsThatOfTheCommitsWhateverSessionTheyWereOf) {
  summaries_.push_back(summaries_[7 * kEach]);
  summaries_.back().id = "renamed";
  summaries_.back().session = "a-web";
  summaries_.back().sequence = 10'000;
  summaries_.insert(summaries_.begin(), summaries_.back());
  summaries_.pop_back();
  EXPECT_THAT(OwnOf(7), ElementsAre("s7-0", "s7-1", "s7-2", "renamed"));
  EXPECT_EQ(NewestSnapshotOf(Machine(7), summaries_, Counted())->id(), "renamed");
}

TEST_F(MachinesTest, WhatIsDamagedOrForgottenMeanwhileIsLeftOutAndAFailureIsNot) {
  broken_ = {{"s7-2", absl::DataLossError("damaged")}, {"s7-1", absl::NotFoundError("forgotten")}};
  EXPECT_THAT(OwnOf(7), ElementsAre("s7-0"));
  EXPECT_EQ(NewestSnapshotOf(Machine(7), summaries_, Counted())->id(), "s7-0");
  broken_["s7-0"] = absl::NotFoundError("forgotten");
  EXPECT_EQ(NewestSnapshotOf(Machine(7), summaries_, Counted()).status().code(), absl::StatusCode::kNotFound);
  broken_["s7-0"] = absl::UnavailableError("the disk is away");
  EXPECT_EQ(SnapshotsOf(Machine(7), summaries_, Counted()).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace still::schedule
