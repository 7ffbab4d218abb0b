// What a freeze says of the disks.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/freeze_fixture.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

TEST_F(FreezeControllerTest, WhatCannotFreezeIsCleanOnlyIfNobodyWritesToIt) {
  const DeviceId device{254, 16};  // /a
  guest_.superblock("/a").freeze_error = EOPNOTSUPP;
  auto state_of_a = [&](const std::string& token) {
    auto frozen = Quiesce(QuiesceOf(token));
    EXPECT_TRUE(frozen.ok());
    for (const pb::DiskUse& use : frozen->disks(0).uses()) {
      if (use.name() == "/a") return use;
    }
    return pb::DiskUse();
  };
  EXPECT_EQ(state_of_a("t").state(), pb::DiskUse::CLEAN);
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->written_size(), 0);
  // Written to while it was taken for clean.
  EXPECT_EQ(state_of_a("u").state(), pb::DiskUse::CLEAN);
  guest_.CountWrite(device);
  EXPECT_THAT(controller().Thaw(ThawOf("u"))->written(), ElementsAre("vda"));
  // A second write-back that finds something: somebody is writing.
  guest_.on_sync = [&](const std::string& mount_point) {
    if (mount_point == "/a") guest_.CountWrite(device);
  };
  EXPECT_THAT(state_of_a("v").detail(), HasSubstr("being written to"));
  ASSERT_TRUE(controller().Thaw(ThawOf("v")).ok());
  guest_.on_sync = nullptr;
  guest_.open.file_systems[device] = "vi (7)";
  EXPECT_THAT(state_of_a("w").detail(), HasSubstr("vi (7)"));
}

TEST_F(FreezeControllerTest, WhatIsNotCountedIsNotCovered) {
  const DeviceId counted{254, 80};
  const DeviceId uncounted{254, 96};
  guest_.watched = {counted, uncounted};
  guest_.uncounted = {uncounted};
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  std::vector<std::string> bare;
  for (const pb::DiskUse& use : frozen->disks(0).uses()) {
    if (use.state() == pb::DiskUse::NOT_COVERED) bare.push_back(use.device());
  }
  EXPECT_THAT(bare, ElementsAre("254:96"));
}

std::vector<std::string> WritersOf(const pb::QuiesceResponse& response) {
  std::vector<std::string> writers;
  for (const pb::DiskUse& use : response.disks(0).uses()) {
    if (use.kind() == pb::DiskUse::OPENED) writers.push_back(absl::StrCat(use.name(), " ", use.detail()));
  }
  return writers;
}

TEST_F(FreezeControllerTest, WhoOpensADiskDuringTheFreezeIsSeen) {
  guest_.superblock("/a").freeze_error = EOPNOTSUPP;  // 254:16
  guest_.before_freeze = [&](const std::string&) {
    guest_.open.devices[{254, 32}] = "dd (9)";
    guest_.open.file_systems[{254, 16}] = "vi (7)";
    guest_.open.file_systems[{254, 48}] = "postgres (8)";  // On what is frozen: it waits.
  };
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(WritersOf(*frozen),
              UnorderedElementsAre("dd (9) has it open for writing", "vi (7) has a file on it open for writing"));
}

// While file systems are frozen nobody can ask for mappings, so what was found before must be kept.
TEST_F(FreezeControllerTest, WhatIsMappedForWritingCountsAsOpen) {
  guest_.superblock("/a").freeze_error = EOPNOTSUPP;
  guest_.mapped.file_systems[{254, 16}] = "vi (7)";
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  EXPECT_THAT(frozen->disks(0).DebugString(), HasSubstr("vi (7) has a file on it open for writing"));
}

TEST_F(FreezeControllerTest, AWritePastWhatIsFrozenIsToldWhereTheKernelCounts) {
  const DeviceId counted{254, 16};  // /a
  const DeviceId uncounted{254, 32};
  guest_.uncounted = {uncounted};
  auto frozen = Quiesce(QuiesceOf("t"));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  for (const pb::DiskUse& use : frozen->disks(0).uses()) EXPECT_EQ(use.state(), pb::DiskUse::FROZEN);
  EXPECT_EQ(controller().Thaw(ThawOf("t"))->written_size(), 0);
  ASSERT_TRUE(Quiesce(QuiesceOf("u")).ok());
  guest_.CountWrite(counted);
  EXPECT_THAT(controller().Thaw(ThawOf("u"))->written(), ElementsAre("vda"));
}

TEST_F(FreezeControllerTest, ALeaseThatEndsInTheLastFreezeIsNotFollowedByALookAtTheDisks) {
  int count = 0;
  int surveys = 0;
  guest_.before_freeze = [&](const std::string&) {
    if (++count == 4) guest_.Advance(absl::Seconds(5));
    surveys = guest_.surveys;
  };
  EXPECT_EQ(Quiesce(QuiesceOf("t")).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(guest_.surveys, surveys);
  ExpectThawed();
}

}  // namespace
}  // namespace still::agent
