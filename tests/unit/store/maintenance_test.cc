// Verify, repair, forget and prune, on repositories that were damaged or emptied on purpose.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "store/pack/pack_format.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::IsEmpty;
using ::testing::Not;

class MaintenanceTest : public ::testing::Test {
 protected:
  RepositoryOptions Options() { return {.path = directory_.path(), .workers = 2}; }

  std::vector<std::string> Files(const std::string& folder) {
    std::vector<std::string> files;
    const std::filesystem::path path = JoinPath(directory_.path(), folder);
    if (!std::filesystem::exists(path)) return files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    return files;
  }
  // Largest first: data packs before tree packs.
  std::vector<std::string> PacksBySize() {
    std::vector<std::string> packs = Files("packs");
    std::stable_sort(packs.begin(), packs.end(), [](const std::string& a, const std::string& b) {
      return std::filesystem::file_size(a) > std::filesystem::file_size(b);
    });
    return packs;
  }
  void FlipBit(const std::string& file, uint64_t offset) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(stream.get() ^ 0x10);
    stream.seekp(static_cast<std::streamoff>(offset));
    stream.put(byte);
    ASSERT_TRUE(stream.good());
  }
  VerifyReport VerifyAll(Repository& repository) {
    auto report = repository.Verify({.read_data_percent = 100});
    EXPECT_TRUE(report.ok()) << report.status();
    return report.ok() ? *report : VerifyReport{};
  }
  void ExpectWhole(Repository& repository, const std::string& name, const std::string& content) {
    auto loaded = LoadImage(repository, name);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_TRUE(*loaded == content) << name;
  }

  TemporaryDirectory directory_;
};

TEST_F(MaintenanceTest, AWholeRepositoryVerifies) {
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "one", MakeImage(1, 20 * kMiB)).ok());
  const VerifyReport report = VerifyAll(*repository);
  EXPECT_THAT(report.problems, IsEmpty());
  EXPECT_EQ(report.snapshots, 1);
  EXPECT_EQ(report.packs, 2);
  EXPECT_EQ(report.blocks_read, repository->Stats()->unique_blocks);
}

TEST_F(MaintenanceTest, SlicesTogetherReadEverythingOnce) {
  auto repository = MustMake(Options());
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    ASSERT_TRUE(StoreImage(*repository, absl::StrCat("s", seed), MakeImage(seed, 100 * 1024)).ok());
  }
  FlipBit(PacksBySize()[0], 1000);
  constexpr uint32_t kSlices = 5;
  uint64_t blocks_read = 0;
  int found = 0;
  const uint64_t blocks = repository->Stats()->unique_blocks;
  for (uint32_t i = 0; i < kSlices; ++i) {
    auto report = repository->Verify({.read_slice = {.index = i, .count = kSlices}});
    ASSERT_TRUE(report.ok()) << report.status();
    blocks_read += report->blocks_read;
    if (!report->ok()) ++found;
  }
  EXPECT_EQ(found, 1);
  // But those of the group that cannot be read.
  EXPECT_LT(blocks_read, blocks);
  EXPECT_GE(blocks_read + kBlocksPerGroup, blocks);
  EXPECT_TRUE(absl::IsInvalidArgument(repository->Verify({.read_slice = {.index = 5, .count = 5}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      repository->Verify({.read_data_percent = 1, .read_slice = {.index = 0, .count = 5}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(repository->Verify({.read_data_percent = 101}).status()));
}

TEST_F(MaintenanceTest, EveryFlippedBitIsFoundAndNoneIsServed) {
  const std::string content = MakeImage(2, 3 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", content).ok());
  std::mt19937_64 random(3);
  std::vector<std::string> files = Files("packs");
  for (const std::string& manifest : Files("snapshots")) files.push_back(manifest);
  ASSERT_EQ(files.size(), 3);
  for (const std::string& file : files) {
    const uint64_t size = std::filesystem::file_size(file);
    // The ends, where headers and trailers are, and places in between.
    std::vector<uint64_t> offsets = {0, 5, 9, 17, 25, 33, size - 1, size - 9, size - 17, size - 25, size - 33};
    for (int i = 0; i < 12; ++i) offsets.push_back(random() % size);
    for (uint64_t offset : offsets) {
      SCOPED_TRACE(absl::StrCat(file, " at ", offset));
      FlipBit(file, offset);
      auto repository = MustOpen(Options());
      EXPECT_THAT(VerifyAll(*repository).problems, Not(IsEmpty()));
      // A reader has the right content or an error.
      auto loaded = LoadImage(*repository, "one");
      EXPECT_TRUE(!loaded.ok() || *loaded == content);
      repository.reset();
      FlipBit(file, offset);
    }
  }
  EXPECT_THAT(VerifyAll(*MustOpen(Options())).problems, IsEmpty());
}

TEST_F(MaintenanceTest, AMissingPackIsFoundAlsoWhenItWasInUseBefore) {
  auto repository = MustMake(Options());
  const std::string content = MakeImage(4, 2 * kMiB);
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  ExpectWhole(*repository, "one", content);
  ASSERT_TRUE(RemoveFile(PacksBySize()[0]).ok());
  const VerifyReport report = VerifyAll(*repository);
  EXPECT_THAT(report.problems, Not(IsEmpty()));
  ASSERT_THAT(report.lost, Not(IsEmpty()));
  EXPECT_EQ(report.lost[0].image, "vda");
  EXPECT_FALSE(LoadImage(*MustOpen(Options()), "one").ok());
}

TEST_F(MaintenanceTest, ATruncatedPackIsFound) {
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", MakeImage(5, 2 * kMiB)).ok());
  const std::string pack = PacksBySize()[0];
  std::filesystem::resize_file(pack, std::filesystem::file_size(pack) / 2);
  EXPECT_THAT(VerifyAll(*MustOpen(Options())).problems, Not(IsEmpty()));
}

TEST_F(MaintenanceTest, RepairKeepsWhatIsWholeAndSaysWhichBytesAreLost) {
  const std::string content = MakeImage(6, 30 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", content).ok());
  FlipBit(PacksBySize()[0], 1000);  // In the first group.
  auto repository = MustOpen(Options());
  auto dry = repository->Repair({.dry_run = true});
  ASSERT_TRUE(dry.ok()) << dry.status();
  ASSERT_THAT(dry->lost, Not(IsEmpty()));
  EXPECT_THAT(Files("quarantine"), IsEmpty());
  auto report = repository->Repair({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(Files("quarantine").size(), 1);
  ASSERT_THAT(report->lost, Not(IsEmpty()));
  // Exactly the lost ranges cannot be read; everything else is as it was.
  uint64_t lost_bytes = 0;
  auto reader = repository->OpenImage(*repository->FindSnapshot("one"), "vda").value();
  std::vector<bool> is_lost(content.size() / kBlockBytes);
  for (const LostRange& lost : report->lost) {
    lost_bytes += lost.range.length;
    for (uint64_t at = lost.range.offset; at < lost.range.offset + lost.range.length; at += kBlockBytes) {
      is_lost[at / kBlockBytes] = true;
    }
  }
  EXPECT_LE(lost_bytes, kMiB);
  std::string block(kBlockBytes, '\0');
  for (size_t i = 0; i < is_lost.size(); ++i) {
    absl::Status status = reader->Read(i * kBlockBytes, absl::MakeSpan(block));
    if (is_lost[i]) {
      EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsNotFound(status)) << i << " " << status;
    } else {
      ASSERT_TRUE(status.ok()) << i << " " << status;
      ASSERT_TRUE(block == content.substr(i * kBlockBytes, kBlockBytes)) << i;
    }
  }
  // Storing the image again heals the old snapshot too: its leaves are the same.
  reader.reset();
  ASSERT_TRUE(StoreImage(*repository, "again", content).ok());
  ExpectWhole(*repository, "again", content);
  ExpectWhole(*repository, "one", content);
}

TEST_F(MaintenanceTest, AllPacksWithoutTheirFootersLoseNothing) {
  const std::string content = MakeImage(7, 10 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", content).ok());
  for (const std::string& pack : PacksBySize()) {
    std::filesystem::resize_file(pack, std::filesystem::file_size(pack) - 40);
  }
  auto repository = MustOpen(Options());
  EXPECT_FALSE(LoadImage(*repository, "one").ok());
  auto report = repository->Repair({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lost, IsEmpty());
  ExpectWhole(*repository, "one", content);
}

TEST_F(MaintenanceTest, ADataPackWithoutItsFooterLosesNothing) {
  const std::string content = MakeImage(8, 10 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", content).ok());
  const std::string pack = PacksBySize()[0];
  std::filesystem::resize_file(pack, std::filesystem::file_size(pack) - 40);
  auto repository = MustOpen(Options());
  auto report = repository->Repair({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lost, IsEmpty());
  ExpectWhole(*repository, "one", content);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
}

TEST_F(MaintenanceTest, ATreePackWithoutItsFooterLosesNothing) {
  const std::string content = MakeImage(9, 200 * kMiB);
  ASSERT_TRUE(StoreImage(*MustMake(Options()), "one", content).ok());
  const std::string pack = PacksBySize().back();
  std::filesystem::resize_file(pack, std::filesystem::file_size(pack) - 40);
  auto repository = MustOpen(Options());
  auto report = repository->Repair({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->lost, IsEmpty());
  ExpectWhole(*repository, "one", content);
}

TEST_F(MaintenanceTest, ADamagedManifestIsSetAsideAndTheOthersStay) {
  {
    auto repository = MustMake(Options());
    ASSERT_TRUE(StoreImage(*repository, "one", MakeImage(10, kMiB)).ok());
    ASSERT_TRUE(StoreImage(*repository, "two", MakeImage(11, kMiB)).ok());
  }
  FlipBit(Files("snapshots")[0], 40);
  // No catalog knows what was in it.
  for (const char* file : {"catalog.db", "catalog.db-wal", "catalog.db-shm"}) {
    std::filesystem::remove(JoinPath(directory_.path(), file));
  }
  auto repository = MustOpen(Options());
  ASSERT_TRUE(repository->Repair({}).ok());
  EXPECT_EQ(Files("snapshots").size(), 1);
  EXPECT_EQ(repository->ListSnapshots()->size(), 1);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
}

TEST_F(MaintenanceTest, PruneDeletesWhatNobodyUsesAndNothingElse) {
  const std::string base = MakeImage(12, 20 * kMiB);
  const std::string next = ChangeImage(base, 13, 30);
  auto repository = MustMake(Options());
  const std::string one = StoreImage(*repository, "one", base).value();
  ASSERT_TRUE(StoreImage(*repository, "two", next).ok());
  const std::string three = StoreImage(*repository, "three", MakeImage(14, 20 * kMiB)).value();
  const RepositoryStats all = *repository->Stats();
  ASSERT_TRUE(repository->Forget({three}).ok());
  // In its grace period an unused pack stays.
  auto report = repository->Prune({.grace = absl::Hours(1)});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->packs_deleted, 0);
  EXPECT_EQ(report->packs_condemned, 0);
  auto dry = repository->Prune({.dry_run = true, .grace = absl::ZeroDuration()});
  ASSERT_TRUE(dry.ok()) << dry.status();
  EXPECT_GT(dry->packs_condemned, 0);
  EXPECT_EQ(repository->Stats()->packs, all.packs);
  report = repository->Prune({.grace = absl::ZeroDuration()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->packs_deleted, 0);
  EXPECT_LT(repository->Stats()->unique_blocks, all.unique_blocks * 3 / 4);
  ExpectWhole(*repository, "one", base);
  ExpectWhole(*repository, "two", next);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
  // Half of the first image's blocks are in use by the second: its pack is rewritten when most of it is dead.
  ASSERT_TRUE(repository->Forget({one}).ok());
  report = repository->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 0.95});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->packs_rewritten, 0);
  EXPECT_GT(report->packs_deleted, 0);
  ExpectWhole(*repository, "two", next);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
  repository = MustOpen(Options());
  ExpectWhole(*repository, "two", next);
  EXPECT_THAT(Files("condemned"), IsEmpty());
  // Rewritten leaves left dead ones behind; after those are gone nothing is left to do.
  for (int i = 0; i < 2; ++i) {
    report = repository->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 0.95});
    ASSERT_TRUE(report.ok()) << report.status();
  }
  EXPECT_EQ(report->packs_condemned + report->packs_deleted, 0);
  EXPECT_EQ(report->dead_blocks, 0);
  ExpectWhole(*repository, "two", next);
}

TEST_F(MaintenanceTest, ACaptureThatRunsKeepsWhatItFoundBeforeThePrune) {
  const std::string content = MakeImage(15, 20 * kMiB);
  auto repository = MustMake(Options());
  const std::string one = StoreImage(*repository, "one", content).value();
  auto other = MustOpen(Options());
  auto snapshot = other->BeginSnapshot().value();
  auto image = snapshot->BeginImage({.name = "vda", .size = content.size()}).value();
  ASSERT_TRUE(image->Write(0, content).ok());
  ASSERT_TRUE(image->Finish().ok());
  EXPECT_EQ(image->stats().new_bytes, 0);
  image.reset();
  ASSERT_TRUE(repository->Forget({one}).ok());
  auto report = repository->Prune({.grace = absl::ZeroDuration()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->packs_condemned, 0);
  EXPECT_EQ(report->packs_deleted, 0);
  EXPECT_EQ(report->packs_waiting, report->packs_condemned);
  ASSERT_TRUE(snapshot->Commit(Manifest("two")).ok());
  snapshot.reset();
  report = repository->Prune({.grace = absl::ZeroDuration()});
  ASSERT_TRUE(report.ok()) << report.status();
  ExpectWhole(*other, "two", content);
  ExpectWhole(*MustOpen(Options()), "two", content);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
}

TEST_F(MaintenanceTest, CondemnedPacksAreNotUsedForNewSnapshots) {
  const std::string content = MakeImage(16, 4 * kMiB);
  auto repository = MustMake(Options());
  const std::string one = StoreImage(*repository, "one", content).value();
  ASSERT_TRUE(repository->Forget({one}).ok());
  {
    // Somebody reads, so that the sweep cannot run.
    ASSERT_TRUE(StoreImage(*repository, "small", MakeImage(17, kMiB)).ok());
    auto reader = repository->OpenImage(*repository->FindSnapshot("small"), "vda").value();
    ASSERT_TRUE(repository->Prune({.grace = absl::ZeroDuration()}).ok());
    EXPECT_GT(repository->Stats()->condemned_packs, 0);
    ASSERT_TRUE(StoreImage(*repository, "two", content).ok());
  }
  auto report = repository->Prune({.grace = absl::ZeroDuration()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->packs_deleted, 0);
  ExpectWhole(*repository, "two", content);
  EXPECT_THAT(VerifyAll(*repository).problems, IsEmpty());
}

}  // namespace
}  // namespace still::store
