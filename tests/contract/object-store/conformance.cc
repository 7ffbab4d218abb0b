#include "tests/contract/object-store/conformance.h"

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kLimit = 64 << 20;

std::vector<std::string> Names(ObjectStore& store, absl::string_view prefix) {
  std::vector<std::string> names;
  absl::StatusOr<std::vector<ObjectInfo>> objects = store.List(prefix);
  EXPECT_TRUE(objects.ok()) << objects.status();
  if (objects.ok()) {
    for (const ObjectInfo& object : *objects) names.push_back(object.name);
  }
  return names;
}

std::unique_ptr<ObjectWriter> Written(ObjectStore& store, absl::string_view name, absl::string_view content,
                                      PutOptions options = {}) {
  absl::StatusOr<std::unique_ptr<ObjectWriter>> writer = store.NewWriter(name, options);
  EXPECT_TRUE(writer.ok()) << writer.status();
  EXPECT_TRUE((*writer)->Append(content).ok());
  return *std::move(writer);
}

std::string LongLeaf(char fill, int number) { return absl::StrCat("packs/", std::string(20, fill), "-", number); }

TEST_P(ObjectStoreContract, GivesBackWhatWasPut) {
  const std::string content("some\0bytes\n", 11);
  ASSERT_TRUE(store_.Put("packs/one", content).ok());
  for (ObjectStore* store : {&store_, &other_}) {
    EXPECT_EQ(*store->Get("packs/one", kLimit), content);
    EXPECT_EQ(*store->Size("packs/one"), content.size());
  }
}

TEST_P(ObjectStoreContract, AnObjectMayBeEmpty) {
  ASSERT_TRUE(store_.Put("packs/empty", "").ok());
  EXPECT_EQ(*other_.Size("packs/empty"), 0u);
  EXPECT_EQ(*other_.Get("packs/empty", 0), "");
  char byte;
  EXPECT_EQ(other_.GetRange("packs/empty", 0, absl::MakeSpan(&byte, 1)).code(), absl::StatusCode::kOutOfRange);
}

TEST_P(ObjectStoreContract, RangesAreExactOrRefused) {
  ASSERT_TRUE(store_.Put("packs/one", "0123456789").ok());
  auto range = [&](uint64_t offset, size_t size) -> absl::StatusOr<std::string> {
    std::string out(size, '?');
    absl::Status status = other_.GetRange("packs/one", offset, absl::MakeSpan(out));
    if (!status.ok()) return status;
    return out;
  };
  EXPECT_EQ(*range(0, 10), "0123456789");
  EXPECT_EQ(*range(3, 4), "3456");
  EXPECT_EQ(*range(9, 1), "9");
  EXPECT_EQ(*range(5, 0), "");
  EXPECT_EQ(range(9, 2).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(range(10, 1).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(range(uint64_t{1} << 62, 1).status().code(), absl::StatusCode::kOutOfRange);
}

TEST_P(ObjectStoreContract, WhatIsNotThereIsNotFoundByName) {
  char byte;
  absl::Status read = store_.GetRange("packs/absent", 0, absl::MakeSpan(&byte, 1));
  EXPECT_EQ(read.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(read.message(), HasSubstr("packs/absent"));
  absl::Status size = store_.Size("packs/absent").status();
  EXPECT_EQ(size.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(size.message(), HasSubstr("packs/absent"));
  EXPECT_THAT(Names(store_, ""), IsEmpty());
  EXPECT_THAT(Names(store_, "packs/"), IsEmpty());
}

TEST_P(ObjectStoreContract, GetRefusesWhatIsLongerThanItsLimit) {
  ASSERT_TRUE(store_.Put("packs/one", "12345").ok());
  EXPECT_EQ(store_.Get("packs/one", 4).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store_.Get("packs/one", 5).ok());
}

TEST_P(ObjectStoreContract, NothingIsSeenBeforePublish) {
  std::unique_ptr<ObjectWriter> writer = Written(store_, "packs/one", "half");
  writer->Finish();
  EXPECT_EQ(writer->size(), 4u);
  EXPECT_EQ(writer->name(), "packs/one");
  for (ObjectStore* store : {&store_, &other_}) {
    EXPECT_THAT(Names(*store, ""), IsEmpty());
    EXPECT_EQ(store->Size("packs/one").status().code(), absl::StatusCode::kNotFound);
  }
  ASSERT_TRUE(store_.Publish(std::move(writer)).ok());
  EXPECT_THAT(Names(other_, ""), ElementsAre("packs/one"));
}

TEST_P(ObjectStoreContract, ADroppedWriterLeavesNothing) {
  Written(store_, "packs/one", std::string(100000, 'x')).reset();
  EXPECT_THAT(Names(other_, ""), IsEmpty());
  absl::StatusOr<SweptLeftovers> swept = other_.SweepLeftovers();
  ASSERT_TRUE(swept.ok()) << swept.status();
  EXPECT_EQ(swept->removed, 0);
  EXPECT_EQ(swept->still_written, 0);
  EXPECT_TRUE(store_.Put("packs/one", "later").ok()) << "the name is free";
}

TEST_P(ObjectStoreContract, ASweepLeavesLiveWritersAlone) {
  std::unique_ptr<ObjectWriter> writer = Written(store_, "packs/one", "half");
  absl::StatusOr<SweptLeftovers> swept = other_.SweepLeftovers();
  ASSERT_TRUE(swept.ok()) << swept.status();
  EXPECT_EQ(swept->removed, 0);
  ASSERT_TRUE(writer->Append(" and half").ok());
  ASSERT_TRUE(store_.Publish(std::move(writer)).ok());
  EXPECT_EQ(*other_.Get("packs/one", kLimit), "half and half");
}

TEST_P(ObjectStoreContract, CreatingWhatExistsIsRefusedAndChangesNothing) {
  ASSERT_TRUE(store_.Put("packs/one", "first").ok());
  absl::Status again = other_.Put("packs/one", "second");
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(again.message(), HasSubstr("packs/one"));
  EXPECT_EQ(*store_.Get("packs/one", kLimit), "first");
}

TEST_P(ObjectStoreContract, OfSeveralCreatorsOneWins) {
  if (!store_.capabilities().atomic_create) return;  // Nothing is promised.
  std::atomic<int> won{0};
  std::atomic<int> lost{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    ObjectStore& store = bench_->NewStore();
    threads.emplace_back([&store, &won, &lost, t] {
      for (int i = 0; i < 20; ++i) {
        absl::Status status = store.Put(absl::StrCat("packs/race-", i), absl::StrCat("thread ", t));
        if (status.ok()) ++won;
        if (absl::IsAlreadyExists(status)) ++lost;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 20);
  EXPECT_EQ(lost, 60);
}

TEST_P(ObjectStoreContract, ReadersSeeTheOldObjectOrTheNewOne) {
  ASSERT_TRUE(store_.Put("state", std::string(4096, 'a')).ok());
  std::atomic<bool> done{false};
  std::atomic<int> torn{0};
  std::thread reader([&] {
    while (!done) {
      std::string out(4096, '?');
      if (!other_.GetRange("state", 0, absl::MakeSpan(out)).ok() || out != std::string(4096, out[0])) ++torn;
    }
  });
  for (int i = 0; i < 50; ++i) {
    EXPECT_TRUE(
        store_.Put("state", std::string(4096, static_cast<char>('a' + i % 26)), {.mode = PutMode::kReplace}).ok());
  }
  done = true;
  reader.join();
  EXPECT_EQ(torn, 0);
}

TEST_P(ObjectStoreContract, VolatileObjectsAreSeenLikeOthers) {
  PutOptions options{.mode = PutMode::kReplace, .durability = PutDurability::kVolatile};
  ASSERT_TRUE(store_.Put("locks/one", "first", options).ok());
  ASSERT_TRUE(other_.Put("locks/one", "second", options).ok());
  EXPECT_EQ(*store_.Get("locks/one", kLimit), "second");
  EXPECT_THAT(Names(store_, "locks/"), ElementsAre("locks/one"));
}

TEST_P(ObjectStoreContract, SeveralArePublishedTogether) {
  std::vector<std::unique_ptr<ObjectWriter>> writers;
  for (int i = 0; i < 8; ++i) {
    writers.push_back(Written(store_, LongLeaf(static_cast<char>('a' + i % 3), i), absl::StrCat("content ", i)));
  }
  ASSERT_TRUE(store_.Publish(std::move(writers)).ok());
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(*other_.Get(LongLeaf(static_cast<char>('a' + i % 3), i), kLimit), absl::StrCat("content ", i));
  }
  EXPECT_TRUE(store_.Publish(std::vector<std::unique_ptr<ObjectWriter>>()).ok());
}

TEST_P(ObjectStoreContract, PublishStopsAtTheFirstThatFails) {
  ASSERT_TRUE(store_.Put("packs/two", "taken").ok());
  std::vector<std::unique_ptr<ObjectWriter>> writers;
  for (const char* name : {"packs/one", "packs/two", "packs/three"}) writers.push_back(Written(store_, name, "new"));
  EXPECT_EQ(store_.Publish(std::move(writers)).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Names(other_, "packs/"), ElementsAre("packs/one", "packs/two"));
  EXPECT_EQ(*other_.Get("packs/two", kLimit), "taken");
  EXPECT_EQ(other_.SweepLeftovers()->removed, 0);
}

TEST_P(ObjectStoreContract, SettlingChangesNothingThatCanBeSeen) {
  ASSERT_TRUE(store_.Put("packs/one", "1").ok());
  ASSERT_TRUE(store_.Put(LongLeaf('a', 1), "2").ok());
  const std::vector<std::string> names = {"packs/one", LongLeaf('a', 1), "packs/absent", "nowhere/at-all"};
  EXPECT_TRUE(other_.Settle(names).ok());
  EXPECT_TRUE(other_.Settle({}).ok());
  EXPECT_THAT(Names(store_, ""), ElementsAre(LongLeaf('a', 1), "packs/one"));
  const std::vector<std::string> bad = {"../x"};
  EXPECT_EQ(other_.Settle(bad).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(ObjectStoreContract, ListsByPrefixInOrder) {
  for (const char* name : {"config", "packs/zzz", "packs/abcdefghijklmnopqrstuvwxyz", "packs/abc", "packs/abx",
                           "snapshots/abcdefghijklmnopqrstuvwxyz", "pack", "packs/abczefghijklmnopqrstuvwxyz"}) {
    ASSERT_TRUE(store_.Put(name, name).ok()) << name;
  }
  EXPECT_THAT(Names(other_, ""), ElementsAre("config", "pack", "packs/abc", "packs/abcdefghijklmnopqrstuvwxyz",
                                             "packs/abczefghijklmnopqrstuvwxyz", "packs/abx", "packs/zzz",
                                             "snapshots/abcdefghijklmnopqrstuvwxyz"));
  EXPECT_THAT(Names(other_, "packs/abc"),
              ElementsAre("packs/abc", "packs/abcdefghijklmnopqrstuvwxyz", "packs/abczefghijklmnopqrstuvwxyz"));
  EXPECT_THAT(Names(other_, "packs/abcd"), ElementsAre("packs/abcdefghijklmnopqrstuvwxyz"));
  EXPECT_THAT(Names(other_, "packs/a"), SizeIs(4));
  EXPECT_THAT(Names(other_, "packs/zzzz"), IsEmpty());
  EXPECT_THAT(Names(other_, "pack"), SizeIs(6));
  EXPECT_THAT(Names(other_, "nothing/"), IsEmpty());
  ObjectInfo object = store_.List("packs/zzz")->at(0);
  EXPECT_EQ(object.size, 9u);
  EXPECT_LT(absl::AbsDuration(absl::Now() - object.modified), absl::Minutes(10));
}

TEST_P(ObjectStoreContract, DeletingIsIdempotentAndFreesTheName) {
  std::vector<std::string> names = {"packs/one", LongLeaf('a', 1), "nowhere/at-all", "config"};
  ASSERT_TRUE(store_.Put(names[0], "1").ok());
  ASSERT_TRUE(store_.Put(names[1], "2").ok());
  ASSERT_TRUE(store_.Put("packs/stays", "3").ok());
  EXPECT_TRUE(other_.Delete(names).ok());
  EXPECT_THAT(Names(store_, ""), ElementsAre("packs/stays"));
  EXPECT_TRUE(other_.Delete(names).ok());
  EXPECT_TRUE(store_.Delete("packs/never").ok());
  EXPECT_TRUE(store_.Put(names[0], "again").ok());
  EXPECT_EQ(*other_.Get(names[0], kLimit), "again");
}

TEST_P(ObjectStoreContract, NamesThatCannotBeStoredAreRefusedEverywhere) {
  const std::string bad[] = {"",
                             "..",
                             "ab",
                             "packs/",
                             "/packs",
                             "packs/../config",
                             "packs/a/b1",
                             "packs/Upper1",
                             ".hidden",
                             "packs/ab",
                             "packs/.hidden",
                             "packs//one",
                             "packs/ä123",
                             "a b c",
                             "packs/one\n",
                             std::string("nul\0nul", 7),
                             std::string(129, 'a')};
  for (const std::string& name : bad) {
    SCOPED_TRACE(name);
    char byte;
    EXPECT_EQ(store_.Put(name, "x").code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_.GetRange(name, 0, absl::MakeSpan(&byte, 1)).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_.Size(name).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_.Delete(name).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(Names(store_, ""), IsEmpty());
  EXPECT_TRUE(store_.Put(std::string(128, 'a'), "x").ok()) << "the longest name";
}

TEST_P(ObjectStoreContract, ALargeObjectIsWholeAndReadInAnyOrder) {
  std::mt19937_64 random(7);
  std::string content(3 << 20, '\0');
  for (char& c : content) c = static_cast<char>(random());
  absl::StatusOr<std::unique_ptr<ObjectWriter>> writer = store_.NewWriter("packs/large", {});
  ASSERT_TRUE(writer.ok());
  for (size_t at = 0; at < content.size();) {
    size_t length = std::min<size_t>(1 + random() % 200000, content.size() - at);
    ASSERT_TRUE((*writer)->Append(absl::string_view(content).substr(at, length)).ok());
    at += length;
  }
  EXPECT_EQ((*writer)->size(), content.size());
  ASSERT_TRUE(store_.Publish(*std::move(writer)).ok());
  EXPECT_TRUE(*other_.Get("packs/large", kLimit) == content);
  for (int i = 0; i < 200; ++i) {
    uint64_t offset = random() % content.size();
    std::string out(random() % std::min<size_t>(70000, content.size() - offset + 1), '?');
    ASSERT_TRUE(other_.GetRange("packs/large", offset, absl::MakeSpan(out)).ok());
    ASSERT_TRUE(out == content.substr(offset, out.size())) << offset;
  }
}

TEST_P(ObjectStoreContract, ThreadsUseOneStore) {
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        std::string name = absl::StrCat("packs/", t, "-of-a-long-name-", i);
        bool ok = store_.Put(name, name).ok() && *store_.Get(name, kLimit) == name && store_.List("packs/").ok();
        if (i % 2 == 1) ok = ok && store_.Delete(name).ok();
        if (ok) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 80);
  EXPECT_THAT(Names(other_, "packs/"), SizeIs(40));
}

TEST_P(ObjectStoreContract, CapabilitiesAreTrue) {
  const ObjectStoreCapabilities& capabilities = store_.capabilities();
  EXPECT_GE(capabilities.parallel_requests, 1);
  EXPECT_GE(capabilities.max_object_bytes, uint64_t{1} << 30) << "a pack must fit";
  absl::StatusOr<uint64_t> space = store_.AvailableBytes();
  if (capabilities.reports_space) {
    EXPECT_TRUE(space.ok()) << space.status();
  } else {
    EXPECT_EQ(space.status().code(), absl::StatusCode::kUnimplemented);
  }
}

}  // namespace
}  // namespace still
