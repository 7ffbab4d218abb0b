#include "snapshot/disk_drain.h"

#include <stdlib.h>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/nbd_server.h"
#include "tests/unit/snapshot/recording_image.h"

namespace still::snapshot {
namespace {

using ::still::testing::NbdExport;
using ::still::testing::NbdServer;
using ::still::testing::RecordedImage;
using ::still::testing::RecordingImage;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kBytes = 3 << 20;

class DiskDrainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-drain-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    export_.name = "vda";
    export_.content.assign(kBytes, '\0');
    for (uint64_t i = 1 << 20; i < 2 << 20; ++i) export_.content[i] = static_cast<char>(i % 251);
  }
  void TearDown() override {
    server_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }
  absl::StatusOr<DrainedDisk> Drain(absl::Duration patience = absl::Seconds(60)) {
    std::string dirty = export_.dirty_context;
    auto server = NbdServer::Start(JoinPath(directory_, "nbd.sock"), {export_});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    RecordingImage writer(image_, kBytes);
    NbdSource source{.socket = JoinPath(directory_, "nbd.sock"), .export_name = "vda", .dirty_context = dirty};
    source.patience = patience;
    source.pace = [this](uint64_t bytes) { asked_ += bytes; };
    return DrainDisk(source, kBytes, writer, [this](uint64_t done) { progress_ = done; });
  }

  std::string directory_;
  NbdExport export_;
  std::unique_ptr<NbdServer> server_;
  RecordedImage image_;
  uint64_t progress_ = 0;
  uint64_t asked_ = 0;  // By the pace.
};

TEST_F(DiskDrainTest, ReadsAllOfIt) {
  auto drained = Drain();
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_TRUE(image_.content == export_.content);
  EXPECT_EQ(progress_, kBytes);
  EXPECT_EQ(asked_, drained->bytes_read) << "what limits the rate sees every byte that is read";
}

TEST_F(DiskDrainTest, OfACleanRangeTheParentIsKeptAndNothingIsRead) {
  export_.dirty_context = "qemu:dirty-bitmap:b";
  export_.dirty = {16, 17};  // Two blocks of 64 KiB from 1 MiB on.
  auto drained = Drain();
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_EQ(drained->bytes_read, 2 * NbdExport::kDirtyBlock);
  EXPECT_EQ(asked_, drained->bytes_read);
  EXPECT_EQ(drained->bytes_clean, kBytes - 2 * NbdExport::kDirtyBlock);
  std::string expected(kBytes, 'K');
  expected.replace(1 << 20, 128 << 10, export_.content, 1 << 20, 128 << 10);
  EXPECT_TRUE(image_.content == expected);
}

TEST_F(DiskDrainTest, AReadErrorEndsItAndSaysWhatToDo) {
  export_.fail_reads_from = (1 << 20) + 4096;
  absl::Status drained = Drain().status();
  EXPECT_EQ(drained.code(), absl::StatusCode::kUnavailable) << drained;
  EXPECT_THAT(std::string(drained.message()),
              AllOf(HasSubstr("disk vda cannot be read: "), HasSubstr("take the snapshot again when it is back")));
}

// The answers of a QEMU whose copy-before-write filter has broken its snapshot (qemu_broken_pin_test.cc).
TEST_F(DiskDrainTest, APinThatIsBrokenIsCalledThatAndWhatToDo) {
  export_.read_error = export_.status_error = 22;
  const auto expect_told = [this] {
    absl::Status drained = Drain().status();
    EXPECT_EQ(drained.code(), absl::StatusCode::kAborted) << drained;
    EXPECT_THAT(
        std::string(drained.message()),
        AllOf(HasSubstr("disk vda cannot be read as of the snapshot's point any more"), HasSubstr("take it again")));
  };
  expect_told();
  export_.status_error = 0;
  export_.fail_reads_from = (1 << 20) + 4096;
  expect_told();
}

// Why, the other side knows: it is no fault of what was asked.
TEST_F(DiskDrainTest, AConnectionThatIsCutOffIsAServerThatHasGone) {
  for (uint64_t from : {uint64_t{1}, uint64_t{1} << 20, uint64_t{kBytes} - 1}) {
    SCOPED_TRACE(from);
    export_.content.assign(kBytes, 'x');
    export_.drop_reads_from = from;
    absl::Status drained = Drain().status();
    EXPECT_EQ(drained.code(), absl::StatusCode::kUnavailable) << drained;
  }
}

TEST_F(DiskDrainTest, AServerThatHangsIsGivenUp) {
  export_.hang_reads_from = (1 << 20) + 4096;
  auto drained = Drain(absl::Milliseconds(100));
  EXPECT_EQ(drained.status().code(), absl::StatusCode::kDeadlineExceeded) << drained.status();
}

// A process that was stopped: the kernel accepts connections for it.
TEST_F(DiskDrainTest, AServerThatHangsBeforeItsFirstWordIsGivenUp) {
  const std::string path = JoinPath(directory_, "silent.sock");
  absl::StatusOr<OwnedFd> listening = ListenUnix(path, /*backlog=*/4);
  ASSERT_TRUE(listening.ok()) << listening.status();
  const NbdSource source{.socket = path, .export_name = "vda", .patience = absl::Milliseconds(100)};
  RecordingImage writer(image_, kBytes);
  absl::Status drained = DrainDisk(source, kBytes, writer, [](uint64_t) {}).status();
  EXPECT_EQ(drained.code(), absl::StatusCode::kDeadlineExceeded) << drained;
  EXPECT_EQ(NbdSize(source).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(DiskDrainTest, AServerThatHangsWhenItIsAskedForExtentsIsGivenUp) {
  export_.hang_status = true;
  auto drained = Drain(absl::Milliseconds(100));
  EXPECT_EQ(drained.status().code(), absl::StatusCode::kDeadlineExceeded) << drained.status();
}

}  // namespace
}  // namespace still::snapshot
