// Names that are no UTF-8, and manifests that cannot be read: neither may cost more than itself.
#include "store/manifest_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/names.h"
#include "store/block/frame.h"
#include "store/catalog/catalog.h"
#include "store/catalog/schema.h"
#include "store/image/stream_size.h"
#include "store/object/directory_store.h"
#include "store/sqlite/sqlite.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kLatin1[] = "caf\xe9.img";
constexpr char kEscaped[] = "caf\\xe9.img";

class ManifestTextTest : public ::testing::Test {
 protected:
  RepositoryOptions Options() { return {.path = directory_.path(), .workers = 2}; }
  std::vector<std::string> Names(Repository& repository) {
    std::vector<std::string> names;
    auto snapshots = repository.ListSnapshots();
    EXPECT_TRUE(snapshots.ok()) << snapshots.status();
    if (!snapshots.ok()) return names;
    for (const manifest::Snapshot& one : *snapshots) names.push_back(one.name());
    return names;
  }
  // As versions before the check wrote it: the texts are what they are.
  void PutAsBefore(const manifest::Snapshot& snapshot) {
    auto objects = DirectoryObjectStore::Open(directory_.path());
    ASSERT_TRUE(objects.ok());
    const std::string name = "snapshots/" + snapshot.id();
    std::string object;
    FrameCodec().Encode(FrameKind::kManifest, {.keys = nullptr, .object = name}, true, snapshot.SerializeAsString(),
                        object);
    ASSERT_TRUE((*objects)->Put(name, object, {.mode = PutMode::kReplace}).ok());
  }
  std::string Catalog() const { return JoinPath(directory_.path(), "catalog.db"); }
  void ForgetCatalog() {
    for (const char* suffix : {"", "-wal", "-shm"}) ASSERT_TRUE(RemoveFile(Catalog() + suffix).ok());
  }
  TemporaryDirectory directory_;
};

TEST_F(ManifestTextTest, OneThatAnOlderVersionWroteIsReadAndCanBeForgotten) {
  auto repository = MustMake(Options());
  auto id = StoreImage(*repository, "old", "content");
  ASSERT_TRUE(id.ok());
  ASSERT_TRUE(StoreImage(*repository, "other", "content").ok());
  manifest::Snapshot snapshot = *repository->FindSnapshot("old");
  repository.reset();
  snapshot.set_session(kLatin1);
  (*snapshot.mutable_labels())["k\xff"] = "v\xff";
  snapshot.mutable_consistency()->add_frozen()->set_mount_point("/\xe9");
  PutAsBefore(snapshot);
  ForgetCatalog();

  repository = MustOpen(Options());
  EXPECT_THAT(Names(*repository), ElementsAre("old", "other"));
  auto read = repository->FindSnapshot(*id);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->session(), kEscaped);
  EXPECT_EQ(UnescapeName(read->session()), kLatin1);
  EXPECT_EQ(read->labels().at("k\\xff"), "v\\xff");
  EXPECT_EQ(read->consistency().frozen(0).mount_point(), "/\\xe9");
  EXPECT_EQ(LoadImage(*repository, "caf\\xe9.img@latest").value_or(""), "content");
  EXPECT_TRUE(repository->Verify({})->ok());
  EXPECT_TRUE(StoreImage(*repository, "new", "more").ok());
  EXPECT_TRUE(repository->Forget({*id}).ok());
  EXPECT_THAT(Names(*repository), ElementsAre("other", "new"));
  EXPECT_TRUE(repository->Prune({.grace = absl::ZeroDuration()}).ok());
}

TEST_F(ManifestTextTest, WhatGuestsCallTheirThingsIsStoredEscaped) {
  auto repository = MustMake(Options());
  auto writer = repository->BeginSnapshot();
  ASSERT_TRUE(writer.ok());
  manifest::Snapshot snapshot = Manifest("one");
  snapshot.set_session(kLatin1);
  snapshot.mutable_consistency()->add_hooks()->set_path("/etc/\xff");
  auto id = (*writer)->Commit(snapshot);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(repository->FindSnapshot("one")->session(), kEscaped);
  EXPECT_EQ(repository->FindSnapshot("one")->consistency().hooks(0).path(), "/etc/\\xff");
  ASSERT_TRUE(repository->RebuildCatalog().ok());
  EXPECT_THAT(Names(*repository), ElementsAre("one"));
}

TEST_F(ManifestTextTest, NamesThatNobodyCouldReachAreRefused) {
  auto repository = MustMake(Options());
  for (const char* name : {"latest", "a:b", "web@2d", "-x", "caf\xe9", "a/b", "n*"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(StoreImage(*repository, name, "x").status())) << name;
  }
  EXPECT_THAT(Names(*repository), ElementsAre());
}

TEST_F(ManifestTextTest, ADamagedRowCostsNothingAndADamagedManifestOnlyItself) {
  auto repository = MustMake(Options());
  auto id = StoreImage(*repository, "one", "1");
  ASSERT_TRUE(id.ok());
  ASSERT_TRUE(StoreImage(*repository, "two", "2").ok());
  auto catalog = Database::Open(Catalog(), kCatalogKind, absl::Seconds(10));
  ASSERT_TRUE(catalog.ok()) << catalog.status();
  ASSERT_TRUE(catalog->Execute("UPDATE snapshot SET manifest = x'ffff' WHERE name = 'one'").ok());
  EXPECT_THAT(Names(*repository), ElementsAre("one", "two")) << "the manifest itself is whole";

  auto objects = DirectoryObjectStore::Open(directory_.path());
  ASSERT_TRUE((*objects)->Put("snapshots/" + *id, "no manifest", {.mode = PutMode::kReplace}).ok());
  EXPECT_THAT(Names(*repository), ElementsAre("two"));
  EXPECT_EQ(repository->FindSnapshot("latest")->name(), "two");
  EXPECT_TRUE(repository->Forget({repository->FindSnapshot("two")->id()}).ok());
  auto report = repository->Verify({});
  ASSERT_TRUE(report.ok());
  EXPECT_THAT(report->problems, ElementsAre(HasSubstr(*id))) << "it is told where damage is looked for";
}

TEST_F(ManifestTextTest, AStreamIsAsLongAsWhatCame) {
  auto repository = MustMake(Options());
  for (size_t size : {size_t{0}, size_t{1}, kMiB, 3 * kMiB + 513, 70 * kMiB}) {
    const std::string content = MakeImage(size, size);
    auto writer = repository->BeginSnapshot();
    ASSERT_TRUE(writer.ok());
    {
      auto image = (*writer)->BeginImage({.name = "vda", .size = kSizeOfStream});
      ASSERT_TRUE(image.ok()) << image.status();
      for (size_t at = 0; at < size; at += kMiB) {
        ASSERT_TRUE((*image)->Write(at, absl::string_view(content).substr(at, kMiB)).ok());
      }
      EXPECT_TRUE(absl::IsInvalidArgument((*image)->Write(size + kMiB, "gap"))) << "a stream has no gaps";
      ASSERT_TRUE((*image)->Finish().ok());
    }
    const std::string name = "stream-" + std::to_string(size);
    ASSERT_TRUE((*writer)->Commit(Manifest(name)).ok());
    EXPECT_EQ(repository->FindSnapshot(name)->images(0).size(), size);
    EXPECT_TRUE(LoadImage(*repository, name).value() == content);
    // The same tree as of an image whose size was known.
    ASSERT_TRUE(StoreImage(*repository, "known-" + std::to_string(size), content).ok());
    EXPECT_EQ(repository->FindSnapshot("known-" + std::to_string(size))->images(0).root(),
              repository->FindSnapshot(name)->images(0).root());
  }
  EXPECT_TRUE(repository->Verify({.read_data_percent = 100})->ok());
}

TEST_F(ManifestTextTest, AFileSystemOfItsOwnIsAnEmptyDirectory) {
  ASSERT_TRUE(MakeDirectories(JoinPath(directory_.path(), "lost+found")).ok());
  auto repository = MustMake(Options());
  ASSERT_NE(repository, nullptr);
  EXPECT_TRUE(StoreImage(*repository, "one", "1").ok());
  EXPECT_TRUE(repository->Verify({})->ok());
  TemporaryDirectory used;
  ASSERT_TRUE(WriteFileAtomically(JoinPath(used.path(), "somebodys"), "x").ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Repository::Init({.path = used.path()})));
}

}  // namespace
}  // namespace still::store
