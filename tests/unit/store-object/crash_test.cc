// A crash after write k, for every k: what was promised durable is there, what was deleted durably is not, and whatever
// else is there is whole.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/object/directory_store.h"
#include "tests/support/fault/simulated_disk.h"

namespace still {
namespace {

constexpr uint64_t kSeeds = 12;
constexpr uint64_t kLimit = 1 << 20;

std::string Content(absl::string_view name, int version) {
  std::string content = absl::StrCat(name, " version ", version, " ");
  while (content.size() < 3000) content += content;
  return content;
}

// What the run knows about each object: the contents it may have (absent being ""), by what was acknowledged.
class Expectation {
 public:
  // From here until Settled() the object may be as before or like this.
  void May(const std::string& name, std::string content) { possible_[name].insert(std::move(content)); }
  void Settled(const std::string& name, const std::string& content) { possible_[name] = {content}; }
  void Check(ObjectStore& store) const {
    std::map<std::string, std::string> found;
    absl::StatusOr<std::vector<ObjectInfo>> objects = store.List("");
    ASSERT_TRUE(objects.ok()) << objects.status();
    for (const ObjectInfo& object : *objects) {
      absl::StatusOr<std::string> content = store.Get(object.name, kLimit);
      ASSERT_TRUE(content.ok()) << content.status();
      found[object.name] = *content;
    }
    for (const auto& [name, contents] : possible_) {
      auto object = found.find(name);
      std::string content = object == found.end() ? "" : object->second;
      EXPECT_TRUE(contents.contains(content)) << name << ": " << content.size() << " bytes: " << content.substr(0, 40);
      found.erase(name);
    }
    EXPECT_TRUE(found.empty()) << "nobody stored " << found.begin()->first;
  }

 private:
  std::map<std::string, std::set<std::string>> possible_;
};

// Puts, replaces, publishes several, deletes. Stops at the first error, as the store's users do.
absl::Status RunScenario(ObjectStore& store, Expectation& expected) {
  auto put = [&](const std::string& name, int version, PutMode mode) {
    if (mode == PutMode::kCreate) expected.May(name, "");
    expected.May(name, Content(name, version));
    absl::Status status = store.Put(name, Content(name, version), {.mode = mode});
    if (status.ok()) expected.Settled(name, Content(name, version));
    return status;
  };
  auto remove = [&](std::vector<std::string> names) {
    for (const std::string& name : names) expected.May(name, "");
    absl::Status status = store.Delete(names);
    if (status.ok()) {
      for (const std::string& name : names) expected.Settled(name, "");
    }
    return status;
  };
  STILL_RETURN_IF_ERROR(put("config", 1, PutMode::kCreate));
  STILL_RETURN_IF_ERROR(put("packs/0123456789abcdef", 1, PutMode::kCreate));
  STILL_RETURN_IF_ERROR(put("config", 2, PutMode::kReplace));
  std::vector<std::string> group = {"packs/aa23456789abcdef", "packs/bb23456789abcdef", "packs/aa99456789abcdef"};
  std::vector<std::unique_ptr<ObjectWriter>> writers;
  for (const std::string& name : group) {
    expected.May(name, "");
    STILL_ASSIGN_OR_RETURN(writers.emplace_back(), store.NewWriter(name, {}));
    std::string content = Content(name, 1);
    STILL_RETURN_IF_ERROR(writers.back()->Append(absl::string_view(content).substr(0, 1000)));
    STILL_RETURN_IF_ERROR(writers.back()->Append(absl::string_view(content).substr(1000)));
  }
  for (const std::string& name : group) expected.May(name, Content(name, 1));
  STILL_RETURN_IF_ERROR(store.Publish(std::move(writers)));
  for (const std::string& name : group) expected.Settled(name, Content(name, 1));
  STILL_RETURN_IF_ERROR(remove({group[0], "config", "packs/never-was-there"}));
  STILL_RETURN_IF_ERROR(put("config", 3, PutMode::kCreate));
  return remove({group[1]});
}

size_t Leftovers(SimulatedDisk& disk) {
  absl::StatusOr<std::vector<std::string>> left = disk.List(disk.root() + "/.writing");
  return left.ok() ? left->size() : 0;
}

enum class After { kPowerCut, kProcessDeath };

void CrashEverywhere(After after) {
  SetLogLevel(LogLevel::kError);  // Each crash leaves temporary files behind, and each would be told.
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    for (int64_t k = 1;; ++k) {
      SCOPED_TRACE(absl::StrCat("seed ", seed, ", crash at change ", k));
      SimulatedDisk disk(seed);
      Expectation expected;
      disk.CutPowerAt(k);
      absl::Status status = RunScenario(**DirectoryObjectStore::Open(disk.root(), disk), expected);
      if (!disk.power_is_off()) {
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_GT(k, 30) << "the scenario was cut short";
        break;
      }
      ASSERT_FALSE(status.ok());
      after == After::kPowerCut ? disk.Reboot() : disk.RestartProcess();
      std::unique_ptr<ObjectStore> store = *DirectoryObjectStore::Open(disk.root(), disk);
      expected.Check(*store);
      absl::StatusOr<SweptLeftovers> swept = store->SweepLeftovers();
      ASSERT_TRUE(swept.ok()) << swept.status();
      EXPECT_EQ(swept->still_written, 0);
      expected.Check(*store);
      // Nothing is left of what was on its way, and the store works on.
      EXPECT_EQ(Leftovers(disk), 0u);
      EXPECT_TRUE(store->Put("packs/after-the-crash-it-works", "x").ok());
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(DirectoryStoreCrashTest, APowerCutAtAnyChangeLeavesEveryObjectWholeOrAbsent) { CrashEverywhere(After::kPowerCut); }

TEST(DirectoryStoreCrashTest, AProcessKilledAtAnyChangeLeavesEveryObjectWholeOrAbsent) {
  CrashEverywhere(After::kProcessDeath);
}

// A writer dies between making an object visible and making it durable; another process finds it, settles it, and
// builds on it. Then the power goes.
TEST(DirectoryStoreCrashTest, WhatWasSettledSurvivesWhoeverWroteIt) {
  SetLogLevel(LogLevel::kError);
  const std::string name = "packs/0123456789abcdef";
  int seen = 0;
  for (uint64_t seed = 1; seed <= 4 * kSeeds; ++seed) {
    for (int64_t k = 1; k < 20; ++k) {
      SimulatedDisk disk(seed);
      disk.CutPowerAt(k);
      if ((*DirectoryObjectStore::Open(disk.root(), disk))->Put(name, Content(name, 1)).ok()) break;
      disk.RestartProcess();
      std::unique_ptr<ObjectStore> store = *DirectoryObjectStore::Open(disk.root(), disk);
      if (!store->Size(name).ok()) continue;
      ++seen;
      ASSERT_TRUE(store->Settle({&name, 1}).ok());
      disk.Reboot();
      absl::StatusOr<std::string> content = store->Get(name, kLimit);
      ASSERT_TRUE(content.ok()) << "seed " << seed << ", crash at change " << k << ": " << content.status();
      ASSERT_EQ(*content, Content(name, 1));
    }
  }
  EXPECT_GT(seen, 10) << "the moment between visible and durable was not met";
}

TEST(DirectoryStoreCrashTest, AnErrorAtAnyChangeIsReportedAndLeavesNothingHalf) {
  for (int64_t k = 1;; ++k) {
    SCOPED_TRACE(absl::StrCat("error at change ", k));
    SimulatedDisk disk(k);
    Expectation expected;
    disk.FailAt(k, absl::DataLossError("Input/output error"));
    std::unique_ptr<ObjectStore> store = *DirectoryObjectStore::Open(disk.root(), disk);
    absl::Status status = RunScenario(*store, expected);
    if (disk.changes() < k) break;
    // The only change whose failure may stay unnoticed is the removal of a temporary file, and the scenario makes none
    // unless something else failed.
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), ::testing::HasSubstr("Input/output error"));
    expected.Check(*store);
    EXPECT_EQ(Leftovers(disk), 0u) << "an error in a living process needs no sweep";
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(DirectoryStoreCrashTest, AFullDiskIsReportedAndNothingHalfIsLeft) {
  uint64_t whole = Content("packs/0123456789abcdef", 1).size();
  for (uint64_t capacity = 0; capacity < 3 * whole; capacity += 500) {
    SCOPED_TRACE(absl::StrCat("capacity ", capacity));
    SimulatedDisk disk(1);
    disk.SetCapacity(capacity);
    Expectation expected;
    std::unique_ptr<ObjectStore> store = *DirectoryObjectStore::Open(disk.root(), disk);
    absl::Status status = RunScenario(*store, expected);
    ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    expected.Check(*store);
    // What was half written gave its room back.
    uint64_t used = 0;
    absl::StatusOr<std::vector<ObjectInfo>> objects = store->List("");
    for (const ObjectInfo& object : *objects) used += object.size;
    EXPECT_EQ(*store->AvailableBytes(), capacity - used);
    disk.SetCapacity(1 << 30);
    EXPECT_TRUE(store->Put("packs/now-there-is-room-again", "x").ok());
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace still
