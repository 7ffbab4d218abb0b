#include "store/repository.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RepositoryTest : public ::testing::Test {
 protected:
  RepositoryOptions Options() { return {.path = directory_.path(), .workers = 2}; }
  manifest::Image ImageOf(Repository& repository, const std::string& reference) {
    auto snapshot = repository.FindSnapshot(reference);
    EXPECT_TRUE(snapshot.ok()) << snapshot.status();
    return snapshot->images(0);
  }
  TemporaryDirectory directory_;
};

TEST_F(RepositoryTest, WhatIsStoredComesBackAlsoAfterReopening) {
  const std::string content = MakeImage(1, 5 * kMiB + 12345);
  auto repository = MustMake(Options());
  auto id = StoreImage(*repository, "one", content);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(LoadImage(*repository, "one").value(), content);
  repository.reset();
  repository = MustOpen(Options());
  EXPECT_EQ(LoadImage(*repository, id->substr(0, 6)).value(), content);
  EXPECT_EQ(LoadImage(*repository, "latest").value(), content);
}

class SetClock final : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Duration Monotonic() const override { return Clock::Real().Monotonic(); }
  void Sleep(absl::Duration duration) override { Clock::Real().Sleep(duration); }
  absl::Time now = Clock::Real().Now();
};

TEST_F(RepositoryTest, TwoHostsShareItAndAClockThatWasAheadIsNoMatter) {
  SetClock clock;
  RepositoryOptions here = Options();
  here.clock = &clock;
  here.here = {.id = std::string(32, 'a'), .name = "alpha"};
  RepositoryOptions there = here;
  there.here = {.id = std::string(32, 'b'), .name = "beta"};
  auto alpha = MustMake(here);
  auto beta = MustOpen(there);
  clock.now += absl::Hours(24 * 300);
  ASSERT_TRUE(StoreImage(*alpha, "ahead", "1").ok());
  clock.now -= absl::Hours(24 * 300);
  ASSERT_TRUE(StoreImage(*alpha, "after", "2").ok());
  ASSERT_TRUE(StoreImage(*beta, "theirs", "3").ok());
  EXPECT_EQ(alpha->FindSnapshot("latest")->name(), "after");
  EXPECT_EQ(beta->FindSnapshot("test@latest")->name(), "theirs");
  EXPECT_EQ(beta->FindSnapshot("alpha/test@latest")->name(), "after");
  const auto order = [](Repository& repository) {
    std::vector<std::string> names;
    auto snapshots = repository.ListSnapshots();
    EXPECT_TRUE(snapshots.ok()) << snapshots.status();
    for (const manifest::Snapshot& one : *snapshots) names.push_back(one.name());
    return names;
  };
  EXPECT_THAT(order(*alpha), ElementsAre("ahead", "after", "theirs"));
  ASSERT_TRUE(alpha->RebuildCatalog().ok());
  EXPECT_THAT(order(*alpha), ElementsAre("ahead", "after", "theirs")) << "the manifests know it too";
}

// Short pieces of what came before, from near and far, and a little that is new: the more work, the more of them are found.
std::string Repetitive(size_t size) {
  std::mt19937_64 random(1);
  std::string data;
  while (data.size() < size) {
    if (data.size() > 65536 && random() % 10 < 7) {
      const size_t back = 64 + random() % std::min<size_t>(data.size() - 64, 200000);
      data += data.substr(data.size() - back, 8 + random() % 40);
    } else {
      for (uint64_t bytes = random() % 12; bytes > 0; --bytes) data += static_cast<char>(random());
    }
  }
  data.resize(size);
  return data;
}

TEST_F(RepositoryTest, ARepositoryKeepsItsCompression) {
  const std::string content = Repetitive(4 * kMiB);
  auto stored = [&](Compression compression) -> uint64_t {
    TemporaryDirectory directory;
    const RepositoryOptions options = {.path = directory.path(), .workers = 2, .compression = compression};
    MustMake(options).reset();
    auto repository = MustOpen({.path = directory.path(), .workers = 2});
    EXPECT_EQ(repository->compression(), compression);
    EXPECT_TRUE(StoreImage(*repository, "one", content).ok());
    EXPECT_TRUE(LoadImage(*repository, "one").value() == content);
    return repository->Stats()->stored_bytes;
  };
  const uint64_t by_default = stored(Compression::kDefault);
  EXPECT_GT(stored(Compression::kFast), by_default);
  EXPECT_LT(stored(Compression::kSmall), by_default);
}

TEST_F(RepositoryTest, AnEmptyImageAndOneOfZerosTakeNoPacks) {
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "empty", "").ok());
  ASSERT_TRUE(StoreImage(*repository, "zeros", std::string(3 * kMiB + 1, '\0')).ok());
  EXPECT_EQ(LoadImage(*repository, "empty").value(), "");
  EXPECT_EQ(LoadImage(*repository, "zeros").value(), std::string(3 * kMiB + 1, '\0'));
  EXPECT_EQ(repository->Stats()->packs, 0);
}

TEST_F(RepositoryTest, WritesInAnyOrderAndTwiceGiveTheLastContent) {
  const std::string content = MakeImage(2, 4 * kMiB + 100);
  const std::string other = MakeImage(3, content.size());
  auto repository = MustMake(Options());
  auto snapshot = repository->BeginSnapshot().value();
  {
    auto image = snapshot->BeginImage({.name = "ram", .size = content.size()}).value();
    std::vector<size_t> order;
    for (size_t at = 0; at < content.size(); at += 3 * kBlockBytes) order.push_back(at);
    std::shuffle(order.begin(), order.end(), std::mt19937_64(4));
    auto part = [](const std::string& from, size_t at) { return absl::string_view(from).substr(at, 3 * kBlockBytes); };
    for (size_t at : order) {
      if (at % 2 != 0) continue;
      ASSERT_TRUE(image->Write(at, part(other, at)).ok());
    }
    for (size_t at : order) ASSERT_TRUE(image->Write(at, part(content, at)).ok());
    ASSERT_TRUE(image->Finish().ok());
  }
  ASSERT_TRUE(snapshot->Commit(Manifest("any-order")).ok());
  EXPECT_EQ(LoadImage(*repository, "any-order", "ram").value(), content);
}

TEST_F(RepositoryTest, TheSameContentIsStoredOnceWhateverItsPlace) {
  const std::string content = MakeImage(5, 8 * kMiB);
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  const uint64_t blocks = repository->Stats()->unique_blocks;
  ASSERT_TRUE(StoreImage(*repository, "shifted", content.substr(kBlockBytes) + content.substr(0, kBlockBytes)).ok());
  EXPECT_EQ(repository->Stats()->unique_blocks, blocks);
  EXPECT_EQ(LoadImage(*repository, "shifted").value(), content.substr(kBlockBytes) + content.substr(0, kBlockBytes));
}

TEST_F(RepositoryTest, AnUnchangedImageSharesItsWholeTreeWithItsParent) {
  const std::string content = MakeImage(6, 3 * kMiB);
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  const manifest::Image parent = ImageOf(*repository, "one");
  const uint64_t packs = repository->Stats()->packs;
  ASSERT_TRUE(StoreImage(*repository, "two", content, &parent).ok());
  EXPECT_EQ(ImageOf(*repository, "two").root(), parent.root());
  EXPECT_EQ(repository->Stats()->packs, packs);
}

TEST_F(RepositoryTest, KeptRangesComeFromTheParent) {
  const std::string base = MakeImage(7, 200 * kMiB);
  std::string content = base;
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "base", base).ok());
  const manifest::Image parent = ImageOf(*repository, "base");
  auto snapshot = repository->BeginSnapshot().value();
  {
    auto image =
        snapshot
            ->BeginImage(
                {.name = "vda", .size = content.size(), .parent_root = parent.root(), .parent_size = parent.size()})
            .value();
    ASSERT_TRUE(image->KeepParent(0, content.size()).ok());
    const std::string news = MakeImage(8, 5 * kBlockBytes);
    const size_t at = 150 * kMiB + 7 * kBlockBytes;
    ASSERT_TRUE(image->Write(at, news).ok());
    content.replace(at, news.size(), news);
    ASSERT_TRUE(image->WriteZeros(170 * kMiB - kBlockBytes, 3 * kBlockBytes).ok());
    content.replace(170 * kMiB - kBlockBytes, 3 * kBlockBytes, std::string(3 * kBlockBytes, '\0'));
    ASSERT_TRUE(image->Finish().ok());
  }
  ASSERT_TRUE(snapshot->Commit(Manifest("kept")).ok());
  EXPECT_TRUE(LoadImage(*repository, "kept").value() == content);
  auto diff = repository->Diff(*repository->FindSnapshot("base"), *repository->FindSnapshot("kept"), "vda");
  ASSERT_TRUE(diff.ok()) << diff.status();
  for (const ImageRange& range : *diff) {
    EXPECT_NE(base.substr(range.offset, range.length), content.substr(range.offset, range.length));
  }
  uint64_t different = 0;
  for (size_t at = 0; at < base.size(); at += kBlockBytes) {
    if (base.compare(at, kBlockBytes, content, at, kBlockBytes) != 0) different += kBlockBytes;
  }
  uint64_t reported = 0;
  for (const ImageRange& range : *diff) reported += range.length;
  EXPECT_EQ(reported, different);
}

TEST_F(RepositoryTest, AFileIsReadByTheWorkersAndItsHolesAreNot) {
  TemporaryDirectory files;
  const std::string file = JoinPath(files.path(), "image");
  OwnedFd fd = OpenFile(file, O_RDWR | O_CREAT).value();
  const std::string content = MakeImage(9, 3 * kMiB + 5);
  const uint64_t size = 64 * kMiB + content.size();
  ASSERT_TRUE(PWriteAll(fd.get(), content.data(), content.size(), 64 * kMiB, "image").ok());
  auto repository = MustMake(Options());
  auto snapshot = repository->BeginSnapshot().value();
  {
    auto image = snapshot->BeginImage({.name = "vda", .size = size}).value();
    EXPECT_EQ(image->WriteFromFile(fd.get(), kBlockBytes, 0, size).code(), absl::StatusCode::kOutOfRange);
    ASSERT_TRUE(image->WriteFromFile(fd.get(), 0, 0, size).ok());
    ASSERT_TRUE(image->Finish().ok());
    EXPECT_EQ(image->stats().bytes_written, size);
  }
  ASSERT_TRUE(snapshot->Commit(Manifest("file")).ok());

  auto reader = repository->OpenImage(*repository->FindSnapshot("file"), "vda").value();
  OwnedFd restored = OpenFile(JoinPath(files.path(), "restored"), O_RDWR | O_CREAT).value();
  ASSERT_TRUE(reader->RestoreTo(restored.get(), {}).ok());
  struct stat status {};
  ASSERT_EQ(::fstat(restored.get(), &status), 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), size);
  EXPECT_LT(static_cast<uint64_t>(status.st_blocks) * 512, 8 * kMiB);
  std::string tail(content.size(), '\0');
  ASSERT_TRUE(PReadExactly(restored.get(), tail.data(), tail.size(), 64 * kMiB, "restored").ok());
  EXPECT_TRUE(tail == content);
  // Into a file with other content, zeros are written too.
  ASSERT_TRUE(PWriteAll(restored.get(), content.data(), content.size(), 0, "restored").ok());
  ASSERT_TRUE(reader->RestoreTo(restored.get(), {.target_is_zero = false}).ok());
  std::string head(content.size(), 'x');
  ASSERT_TRUE(PReadExactly(restored.get(), head.data(), head.size(), 0, "restored").ok());
  EXPECT_TRUE(head == std::string(content.size(), '\0'));
}

TEST_F(RepositoryTest, ANameIsTakenOnlyOnceAndTheLoserMayChooseAnother) {
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "name", MakeImage(10, kMiB)).ok());
  auto snapshot = repository->BeginSnapshot().value();
  {
    auto image = snapshot->BeginImage({.name = "vda", .size = kMiB}).value();
    ASSERT_TRUE(image->Write(0, MakeImage(11, kMiB)).ok());
    ASSERT_TRUE(image->Finish().ok());
  }
  EXPECT_TRUE(absl::IsAlreadyExists(snapshot->Commit(Manifest("name")).status()));
  EXPECT_EQ(repository->ListSnapshots()->size(), 1);
  ASSERT_TRUE(snapshot->Commit(Manifest("another")).ok());
  EXPECT_EQ(LoadImage(*repository, "another").value(), MakeImage(11, kMiB));
}

TEST_F(RepositoryTest, AnInterruptedCaptureDoesNotStoreItsBlocksAgain) {
  const std::string content = MakeImage(12, 48 * kMiB);
  auto repository = MustMake(Options());
  {
    auto snapshot = repository->BeginSnapshot().value();
    auto image = snapshot->BeginImage({.name = "vda", .size = content.size()}).value();
    ASSERT_TRUE(image->Write(0, content).ok());
  }
  EXPECT_TRUE(repository->ListSnapshots()->empty());
  repository = MustOpen(Options());
  auto snapshot = repository->BeginSnapshot().value();
  auto image = snapshot->BeginImage({.name = "vda", .size = content.size()}).value();
  ASSERT_TRUE(image->Write(0, content).ok());
  ASSERT_TRUE(image->Finish().ok());
  EXPECT_EQ(image->stats().new_bytes, 0);
  image.reset();
  ASSERT_TRUE(snapshot->Commit(Manifest("again")).ok());
  EXPECT_TRUE(LoadImage(*repository, "again").value() == content);
}

TEST_F(RepositoryTest, ForgottenSnapshotsAreGoneAndTheOthersStay) {
  auto repository = MustMake(Options());
  const std::string id = StoreImage(*repository, "one", MakeImage(13, kMiB)).value();
  ASSERT_TRUE(StoreImage(*repository, "two", MakeImage(14, kMiB)).ok());
  ASSERT_TRUE(repository->Forget({id}).ok());
  EXPECT_TRUE(absl::IsNotFound(repository->FindSnapshot("one").status()));
  EXPECT_TRUE(absl::IsNotFound(repository->Forget({id})));
  repository = MustOpen(Options());
  EXPECT_EQ(repository->ListSnapshots()->size(), 1);
  EXPECT_EQ(LoadImage(*repository, "two").value(), MakeImage(14, kMiB));
}

TEST_F(RepositoryTest, TheCatalogIsRebuiltFromPacksAndManifestsAlone) {
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "one", MakeImage(15, 2 * kMiB)).ok());
  ASSERT_TRUE(StoreImage(*repository, "two", MakeImage(16, 2 * kMiB)).ok());
  ASSERT_TRUE(repository->RebuildCatalog().ok());
  EXPECT_EQ(LoadImage(*repository, "one").value(), MakeImage(15, 2 * kMiB));
  repository.reset();
  for (const char* name : {"catalog.db", "catalog.db-wal", "catalog.db-shm"}) {
    ASSERT_TRUE(RemoveFile(JoinPath(directory_.path(), name)).ok());
  }
  repository = MustOpen(Options());
  EXPECT_EQ(repository->ListSnapshots()->size(), 2);
  EXPECT_EQ(LoadImage(*repository, "two").value(), MakeImage(16, 2 * kMiB));
}

TEST_F(RepositoryTest, AnEncryptedRepositoryShowsNothingAndOpensOnlyWithItsPassphrase) {
  RepositoryOptions options = Options();
  options.credentials.passphrase = "correct horse";
  options.key_cost = {.passes = 1, .memory_kib = 8 << 10};
  std::string content(kMiB, '\0');
  for (size_t i = 0; i < content.size(); i += 16) content.replace(i, 16, absl::StrCat("secret-", 100000000 + i));
  auto repository = MustMake(options);
  ASSERT_TRUE(StoreImage(*repository, "hidden-name", content).ok());
  EXPECT_TRUE(LoadImage(*repository, "hidden-name").value() == content);
  EXPECT_TRUE(absl::IsUnauthenticated(Repository::Open(Options()).status()));
  RepositoryOptions wrong = options;
  wrong.credentials.passphrase = "wrong";
  EXPECT_FALSE(Repository::Open(wrong).ok());
  // A second passphrase, and the first one revoked.
  const std::string first_key = repository->ListKeys()->at(0).id;
  RepositoryOptions second = options;
  second.credentials.passphrase = "battery staple";
  ASSERT_TRUE(repository->AddKey(second.credentials, "second").ok());
  ASSERT_TRUE(repository->RemoveKey(first_key).ok());
  EXPECT_FALSE(Repository::Open(options).ok());
  EXPECT_TRUE(LoadImage(*MustOpen(second), "latest").value() == content);
}

TEST_F(RepositoryTest, APlainRepositoryIsRefusedToWhoGivesAPassphrase) {
  ASSERT_TRUE(Repository::Init(Options()).ok());
  RepositoryOptions options = Options();
  options.credentials.passphrase = "secret";
  EXPECT_EQ(Repository::Open(options).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RepositoryTest, InitRefusesWhatIsNotEmptyAndOpenWhatIsNoRepository) {
  EXPECT_EQ(Repository::Open(Options()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Repository::Open({.path = "/nonexistent"}).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(WriteFileAtomically(JoinPath(directory_.path(), "somebodys-file"), "x").ok());
  EXPECT_THAT(Repository::Init(Options()).message(), HasSubstr("somebodys-file"));
  ASSERT_TRUE(RemoveFile(JoinPath(directory_.path(), "somebodys-file")).ok());
  ASSERT_TRUE(Repository::Init(Options()).ok());
  EXPECT_EQ(Repository::Init(Options()).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(RepositoryTest, BadRequestsAreRefused) {
  auto repository = MustMake(Options());
  auto snapshot = repository->BeginSnapshot().value();
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->BeginImage({.name = "../x", .size = 1}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->BeginImage({.name = "a", .size = 1ull << 51}).status()));
  auto image = snapshot->BeginImage({.name = "vda", .size = 3 * kBlockBytes + 10}).value();
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->BeginImage({.name = "vda", .size = 1}).status()));
  const std::string block(kBlockBytes, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(image->Write(1, block)));
  EXPECT_TRUE(absl::IsInvalidArgument(image->Write(0, block.substr(1))));
  EXPECT_TRUE(absl::IsInvalidArgument(image->Write(3 * kBlockBytes, block)));
  EXPECT_TRUE(absl::IsInvalidArgument(image->KeepParent(0, kBlockBytes)));
  EXPECT_TRUE(image->Write(3 * kBlockBytes, block.substr(0, 10)).ok());
  EXPECT_EQ(snapshot->Commit(Manifest("x")).status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(image->Finish().ok());
  image.reset();
  manifest::Snapshot wrong = Manifest("x");
  wrong.add_images()->set_name("vdb");
  EXPECT_TRUE(absl::IsInvalidArgument(snapshot->Commit(wrong).status()));
}

TEST_F(RepositoryTest, ReadsOfAnyRangeAndExtentsAgreeWithTheContent) {
  const std::string content = MakeImage(17, 6 * kMiB + 777);
  auto repository = MustMake(Options());
  ASSERT_TRUE(StoreImage(*repository, "one", content).ok());
  auto reader = repository->OpenImage(*repository->FindSnapshot("one"), "vda").value();
  std::mt19937_64 random(18);
  for (int i = 0; i < 300; ++i) {
    const uint64_t offset = random() % (content.size() + 1);
    std::string part(random() % std::min<uint64_t>(200000, content.size() - offset + 1), 'x');
    ASSERT_TRUE(reader->Read(offset, absl::MakeSpan(part)).ok());
    ASSERT_TRUE(part == content.substr(offset, part.size())) << offset << " " << part.size();
  }
  std::string beyond(2, 'x');
  EXPECT_TRUE(absl::IsOutOfRange(reader->Read(content.size() - 1, absl::MakeSpan(beyond))));
  uint64_t at = 100;
  const std::vector<ImageExtent> extents = reader->Extents(at, content.size() - at).value();
  for (const ImageExtent& extent : extents) {
    EXPECT_EQ(extent.offset, at);
    at += extent.length;
    const size_t first_data = content.find_first_not_of('\0', extent.offset);
    if (extent.zero) {
      EXPECT_GE(first_data, at);
    } else {
      EXPECT_LT(first_data, at);
    }
  }
  EXPECT_EQ(at, content.size());
}

}  // namespace
}  // namespace still::store
