#include "store/lock/lease_record.h"

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::store {
namespace {

LeaseRecord Example() {
  return {
      .kind = LeaseKind::kExclusive,
      .purpose = "prune",
      .holder = {.host = "3e5b:build7", .boot = "5f1c", .pid_namespace = 4026531836, .pid = 4711, .start_ticks = 99},
      .term = absl::Minutes(2),
      .renewals = 17};
}

// Written out, as in docs/format/locks.md: what it is today it must stay.
constexpr char kExample[] =
    "stillpoint-lease 1\nkind exclusive\npurpose prune\nhost 3e5b:build7\nboot 5f1c\npidns 4026531836\npid 4711\n"
    "start 99\nterm_ms 120000\nrenewals 0000000017\n";

TEST(LeaseRecordTest, IsTheTextOfTheFormat) {
  EXPECT_EQ(EncodeLease(Example()), kExample);
  absl::StatusOr<LeaseRecord> parsed = ParseLease(kExample);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->kind, LeaseKind::kExclusive);
  EXPECT_EQ(parsed->purpose, "prune");
  EXPECT_EQ(parsed->holder, Example().holder);
  EXPECT_EQ(parsed->term, absl::Minutes(2));
  EXPECT_EQ(parsed->renewals, 17u);
}

TEST(LeaseRecordTest, KeepsItsSizeWhenItIsRenewed) {
  LeaseRecord record = Example();
  record.renewals = 9999999999;
  EXPECT_EQ(EncodeLease(record).size(), std::string(kExample).size());
}

TEST(LeaseRecordTest, WhatItSaysCannotBreakItsLines) {
  LeaseRecord record = Example();
  record.purpose = "evil\nkind shared\n" + std::string(100, 'x');
  absl::StatusOr<LeaseRecord> parsed = ParseLease(EncodeLease(record));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->kind, LeaseKind::kExclusive);
  EXPECT_EQ(parsed->purpose.size(), kMaxPurposeLength);
}

TEST(LeaseRecordTest, EverythingElseIsRefused) {
  const std::string good(kExample);
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_FALSE(ParseLease(good.substr(0, length)).ok()) << length;
  }
  const std::pair<const char*, const char*> changes[] = {{"lease 1", "lease 2"},
                                                         {"exclusive", "both"},
                                                         {"pid 4711", "pid -1"},
                                                         {"pid 4711", "pid +1"},
                                                         {"pid 4711", "pid"},
                                                         {"pid 4711", "pid 4294967296"},
                                                         {"start 99", "start 99 "},
                                                         {"start 99", "start 0x63"},
                                                         {"term_ms 120000", "term_ms 600001"},
                                                         {"term_ms 120000", "term_ms 999"},
                                                         {"pidns 4026531836\n", ""},
                                                         {"purpose prune", "purpose\tprune"},
                                                         {"boot", "Boot"},
                                                         {"prune", "pr\x7fne"},
                                                         {"0000000017\n", "0000000017\nmore 1\n"}};
  for (const auto& [from, to] : changes) {
    std::string changed = absl::StrReplaceAll(good, {{from, to}});
    ASSERT_NE(changed, good);
    EXPECT_EQ(ParseLease(changed).status().code(), absl::StatusCode::kDataLoss) << from << " -> " << to;
  }
  EXPECT_FALSE(ParseLease(good + std::string(kMaxLeaseBytes, '\n')).ok());
}

}  // namespace
}  // namespace still::store
