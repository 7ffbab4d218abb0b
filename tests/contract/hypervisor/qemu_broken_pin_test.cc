// A real QEMU with a disk that is not complete yet, whose server cannot read while a capture is being drained: what the
// guest overwrites then cannot be kept. The guest goes on, whoever reads the capture is told, and the next one is right.
#include <stdlib.h>

#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/nbd_server.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

using session::PausedVm;
using session::PinnedDiskExport;
using session::VmCapture;
using ::testing::HasSubstr;

// Far more than anything takes on a loaded machine.
constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr uint64_t kDiskBytes = 1 << 20;
// The guest's records end in the middle of what a pin copies at a time (64 KiB), and what lies behind them only the server
// has: the disk's own clusters are smaller. So the guest needs the server no more, and the pin does.
constexpr int kOverlayCluster = 4096;
constexpr uint64_t kRecordsEnd = (kRecordSectors + 1) * kSectorBytes;

bool Eventually(const std::function<bool()>& condition) {
  const absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

absl::Status MakeOverlay(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(CommandOutput made, RunCommand({.argv = {"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                                                  absl::StrCat("cluster_size=", kOverlayCluster), path,
                                                                  absl::StrCat(kDiskBytes)}},
                                                        kPatience));
  return made.exit.ok() ? absl::OkStatus() : absl::InternalError(made.stderr_text);
}

class QemuBrokenPinTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-broken-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    auto server =
        NbdServer::Start(JoinPath(directory_, "base.sock"), {{.name = "vdb", .content = std::string(kDiskBytes, 'b')}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    session::VmConfig config{
        .name = "broken", .directory = directory_, .accelerator = TestAccelerator(), .memory_bytes = kGuestMemoryBytes};
    config.disks.push_back({.name = "vda", .path = JoinPath(directory_, "vda.raw"), .format = "raw"});
    config.disks.push_back({.name = "vdb",
                            .path = JoinPath(directory_, "vdb.qcow2"),
                            .format = "qcow2",
                            .backing_export = "vdb",
                            .backing_socket = "base.sock"});
    ASSERT_TRUE(MakeRawDisk(config.disks[0].path, kDiskBytes, CountingGuest()).ok());
    absl::Status made = MakeOverlay(config.disks[1].path);
    ASSERT_TRUE(made.ok()) << made;
    auto vm = session::StartQemuWith({.command_deadline = kPatience}, config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    vm_ = *std::move(vm);
    ASSERT_TRUE(GetsOn()) << "the guest does not boot";
    ASSERT_TRUE(GetsOn(2 * kRecordSectors)) << "it has not written every record once";
  }
  void TearDown() override {
    vm_.reset();
    server_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  bool GetsOn(uint64_t records = 3) const {
    const std::string console = JoinPath(directory_, "console.log");
    const uint64_t before = FileSize(console).value_or(0);
    return Eventually([&] { return FileSize(console).value_or(0) > before + records; });
  }
  absl::StatusOr<std::unique_ptr<VmCapture>> Pin() {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<VmCapture> capture,
                           vm_->PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd()));
    STILL_ASSIGN_OR_RETURN(PausedVm paused, capture->Pause());
    STILL_RETURN_IF_ERROR(capture->PinDisks(paused));
    STILL_RETURN_IF_ERROR(capture->SaveStateAndResume(std::move(paused)).status());
    return capture;
  }

  std::string directory_;
  std::unique_ptr<NbdServer> server_;
  std::unique_ptr<session::Vm> vm_;
};

TEST_F(QemuBrokenPinTest, TheGuestGoesOnTheReaderIsToldAndTheNextCaptureIsRight) {
  server_->FailReads(true);
  auto broken = Pin();
  ASSERT_TRUE(broken.ok()) << broken.status();
  EXPECT_TRUE(GetsOn()) << "the guest waits for what only the capture needs";
  auto exports = (*broken)->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  server_->FailReads(false);
  // Also now that it could be read: what it was is overwritten. What a drain makes of these words: disk_drain_test.cc.
  auto image = ReadExport((*exports)[1]);
  EXPECT_THAT(std::string(image.status().message()), HasSubstr("Invalid argument"));
  EXPECT_TRUE(ReadExport((*exports)[0]).ok()) << "the other disk is not concerned";
  EXPECT_TRUE((*broken)->Release(false).ok());
  EXPECT_TRUE(GetsOn());

  auto capture = Pin();
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_TRUE(GetsOn());
  exports = (*capture)->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  auto first = ReadExport((*exports)[0]);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = ReadExport((*exports)[1]);
  ASSERT_TRUE(second.ok()) << second.status();
  // Of one instant, in which the guest wrote to the one and then to the other.
  EXPECT_LE(NewestRecord(*first) - NewestRecord(*second), 1u);
  EXPECT_TRUE(second->substr(kRecordsEnd) == std::string(kDiskBytes - kRecordsEnd, 'b'));
  EXPECT_TRUE((*capture)->Release(true).ok());
  EXPECT_FALSE(vm_->IsPaused().value_or(true));
}

}  // namespace
}  // namespace still::testing
