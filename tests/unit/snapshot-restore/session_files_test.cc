// The disks of a restored session: raw files, and qcow2 where the file system has no file that long.
#include "snapshot/session_files.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "snapshot/file_image.h"

namespace still::snapshot {
namespace {

constexpr size_t kImageBytes = 64 << 20;
constexpr size_t kLongestFile = 16 << 20;

// As ext4 refuses what is longer than 16 TiB - 4 KiB: with EFBIG.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::signal(SIGXFSZ, SIG_IGN);  // As the programs have it.
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() { EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before_), 0); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

class SessionFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-session-files-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    const store::RepositoryOptions repository = {.path = JoinPath(root_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    repository_ = *store::Repository::Open(repository);
    disk_ = std::string(kImageBytes, '\0');
    disk_.replace(0, 5, "begin");
    disk_.replace(kImageBytes - 3, 3, "end");
    const std::string path = JoinPath(root_, "disk.img");
    ASSERT_TRUE(WriteFileAtomically(path, disk_).ok());
    absl::StatusOr<manifestpb::Snapshot> imported = ImportFile(*repository_, {.path = path});
    ASSERT_TRUE(imported.ok()) << imported.status();
    snapshot_ = *std::move(imported);
    directory_ = JoinPath(root_, "session");
    ASSERT_TRUE(MakeDirectories(directory_).ok());
  }
  void TearDown() override {
    repository_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  // The one disk, as the session is told of it.
  sessionpb::DiskFile Write() {
    sessionpb::SessionConfig config;
    absl::Status written = WriteSessionFiles(
        *repository_, snapshot_,
        {.directory = directory_, .boot_files = JoinPath(root_, "boot-files"), .used_as = "/used/as"}, config);
    EXPECT_TRUE(written.ok()) << written;
    EXPECT_EQ(config.disks_size(), 1);
    return config.disks_size() == 1 ? config.disks(0) : sessionpb::DiskFile();
  }

  std::string root_;
  std::string directory_;
  std::string disk_;
  std::unique_ptr<store::Repository> repository_;
  manifestpb::Snapshot snapshot_;
};

TEST_F(SessionFilesTest, ADiskIsARawFile) {
  const sessionpb::DiskFile file = Write();
  EXPECT_EQ(file.format(), "raw");
  EXPECT_EQ(file.path(), "/used/as/vda.raw");
  EXPECT_TRUE(ReadFile(JoinPath(directory_, "vda.raw"), kImageBytes).value_or("") == disk_);
}

TEST_F(SessionFilesTest, ADiskThatIsLongerThanAnyFileIsQcow2) {
  sessionpb::DiskFile file;
  {
    const FileSizeLimit limit(kLongestFile);
    file = Write();
  }
  EXPECT_EQ(file.format(), "qcow2");
  EXPECT_EQ(file.path(), "/used/as/vda.qcow2");
  absl::StatusOr<std::vector<std::string>> left = ListDirectory(directory_);
  ASSERT_TRUE(left.ok()) << left.status();
  EXPECT_THAT(*left, ::testing::ElementsAre("vda.qcow2")) << "what was tried first is gone";
  const std::string back = JoinPath(root_, "back.raw");
  absl::StatusOr<CommandOutput> converted =
      RunCommand({.argv = {"qemu-img", "convert", "-f", "qcow2", "-O", "raw", JoinPath(directory_, "vda.qcow2"), back}},
                 absl::Minutes(5));
  ASSERT_TRUE(converted.ok() && converted->exit.ok()) << converted.status();
  EXPECT_TRUE(ReadFile(back, kImageBytes).value_or("") == disk_);
}

}  // namespace
}  // namespace still::snapshot
