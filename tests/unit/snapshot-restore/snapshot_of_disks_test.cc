// Machines that are off are backed up from the files of their disks; qemu-nbd reads them, as in `still import`.
#include "snapshot/snapshot_of_disks.h"

#include <stdlib.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/control/session_lock.h"

namespace still::snapshot {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kDiskBytes = 1 << 20;

class SnapshotOfDisksTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-off-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    const store::RepositoryOptions repository = {.path = JoinPath(root_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    repository_ = *store::Repository::Open(repository);
    sessions_ = std::make_unique<session::SessionRegistry>(root_);
    absl::StatusOr<session::SessionPlace> place = sessions_->Create("web");
    ASSERT_TRUE(place.ok()) << place.status();
    content_.assign(kDiskBytes, '\0');
    content_.replace(4096, 5, "hello");
    ASSERT_TRUE(WriteFileAtomically(JoinPath(root_, "disk.raw"), content_).ok());
    ASSERT_TRUE(
        WriteFileAtomically(JoinPath(place->directory, "session.json"),
                            absl::StrCat(R"({"name": "web", "id": "id-of-web", "machine_id": "machine-of-web",)",
                                         R"( "machine": {"disks": [{"name": "vda"}], "vcpus": 2},)",
                                         R"( "disks": [{"name": "vda", "format": "raw", "path": ")",
                                         JoinPath(root_, "disk.raw"), R"("}]})"))
            .ok());
  }
  void TearDown() override {
    repository_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  void End(const std::string& end) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(sessions_->Directory("web"), "end.json"), end).ok());
  }
  absl::StatusOr<manifestpb::Snapshot> Take(const SnapshotOfDisksOptions& options = {}) {
    return TakeSnapshotOfDisks(*sessions_, "web", *repository_, options);
  }

  std::string root_;
  std::string content_;
  std::unique_ptr<store::Repository> repository_;
  std::unique_ptr<session::SessionRegistry> sessions_;
};

TEST_F(SnapshotOfDisksTest, OneThatWasShutDownIsWholeAndSaysThatItWasOff) {
  End(R"({"kind": "POWERED_OFF"})");
  absl::StatusOr<manifestpb::Snapshot> taken = Take({.labels = {{"schedule", "nightly"}}});
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_EQ(taken->consistency().level(), manifestpb::Consistency::FILESYSTEM);
  EXPECT_EQ(taken->labels().at("off"), "powered off");
  EXPECT_EQ(taken->labels().at("schedule"), "nightly");
  EXPECT_EQ(taken->machine_id(), "machine-of-web");
  EXPECT_EQ(taken->machine().vcpus(), 2u);
  EXPECT_EQ(taken->kind(), manifestpb::Snapshot::DISK);
  ASSERT_EQ(taken->images_size(), 1);
  absl::StatusOr<std::unique_ptr<store::ImageReader>> image = repository_->OpenImage(*taken, "vda");
  ASSERT_TRUE(image.ok()) << image.status();
  std::string stored(kDiskBytes, '?');
  ASSERT_TRUE((*image)->Read(0, absl::MakeSpan(stored)).ok());
  EXPECT_TRUE(stored == content_);
  // The next one builds on it.
  absl::StatusOr<manifestpb::Snapshot> next = Take();
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->parent_id(), taken->id());
}

TEST_F(SnapshotOfDisksTest, OneThatWasNotShutDownClaimsNoMoreThanItIs) {
  for (const char* end : {R"({"kind": "STOPPED", "by_force": true})", R"({"kind": "TIMED_OUT"})"}) {
    End(end);
    absl::StatusOr<manifestpb::Snapshot> taken = Take();
    ASSERT_TRUE(taken.ok()) << taken.status();
    EXPECT_EQ(taken->consistency().level(), manifestpb::Consistency::CRASH) << end;
    EXPECT_THAT(taken->consistency().downgrades(0), HasSubstr("had not been shut down"));
  }
}

TEST_F(SnapshotOfDisksTest, NobodyStartsItMeanwhileAndItIsNotReadWhileSomebodyHasIt) {
  End(R"({"kind": "STOPPED"})");
  int looked = 0;
  SnapshotOfDisksOptions options;
  options.progress = [&](const Progress&) {
    ++looked;
    EXPECT_EQ(session::LockSession(sessions_->Directory("web")).status().code(), absl::StatusCode::kFailedPrecondition);
  };
  ASSERT_TRUE(Take(options).ok());
  EXPECT_GT(looked, 0);
  absl::StatusOr<OwnedFd> lock = session::LockSession(sessions_->Directory("web"));
  ASSERT_TRUE(lock.ok()) << "it is given back: " << lock.status();
  EXPECT_EQ(Take().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SnapshotOfDisksTest, ADiskThatIsGoneIsNamedAndNothingIsListed) {
  End(R"({"kind": "STOPPED"})");
  ASSERT_TRUE(RemoveFile(JoinPath(root_, "disk.raw")).ok());
  EXPECT_THAT(Take().status().message(), HasSubstr("disk.raw"));
  EXPECT_THAT(*repository_->ListSnapshots(), IsEmpty());
}

}  // namespace
}  // namespace still::snapshot
