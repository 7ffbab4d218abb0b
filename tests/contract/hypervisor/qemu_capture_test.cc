// Captures of a real QEMU whose disks' content is known byte by byte: over generations of writes and failures, and
// against everything that must not hold the guest.
#include <libnbd.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/random.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/contract/hypervisor/qemu_capture_fixture.h"

namespace still::testing {
namespace {

using session::CaptureOptions;
using session::PausedVm;
using session::PauseReport;
using session::PinnedDiskExport;
using session::VmCapture;
using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kGenerations = 16;

// A reader that has asked for everything, many times, and takes nothing: QEMU is in the middle of an answer. As the
// caller's process is when it is stopped, or when its repository hangs.
class HungReader {
 public:
  static absl::StatusOr<HungReader> Start(const PinnedDiskExport& disk) {
    constexpr int kRequests = 6;  // Far more than sockets and pipe hold, and less than the relay does.
    HungReader reader;
    ::nbd_handle* nbd = reader.nbd_.get();
    reader.buffer_.resize(disk.size);
    if (::nbd_set_export_name(nbd, disk.nbd_export.c_str()) != 0 ||
        ::nbd_connect_unix(nbd, disk.nbd_socket.c_str()) != 0) {
      return absl::UnavailableError(::nbd_get_error());
    }
    for (int i = 0; i < kRequests; ++i) {
      if (::nbd_aio_pread(nbd, reader.buffer_.data(), disk.size, 0, NBD_NULL_COMPLETION, 0) < 0) {
        return absl::UnavailableError(::nbd_get_error());
      }
    }
    return reader;
  }

 private:
  struct Close {
    void operator()(::nbd_handle* nbd) const { ::nbd_close(nbd); }
  };
  std::string buffer_;
  std::unique_ptr<::nbd_handle, Close> nbd_{::nbd_create()};
};

class QemuCaptureTest : public QemuCaptureFixture {
 protected:
  // Runs what a drain of QEMU's block nodes would hold, were there a client that hangs.
  absl::Status StopAndContinue() {
    STILL_RETURN_IF_ERROR(qemu_->machine()->qmp->Run("stop", nlohmann::json::object(), absl::Seconds(60)));
    return qemu_->machine()->qmp->Run("cont", nlohmann::json::object(), absl::Seconds(60));
  }
  // The next capture on these bitmaps is right, and says of each disk why it is read in full.
  void ExpectFullReads(const Bitmaps& bitmaps, const std::string& of_vda, const std::string& of_vdb) {
    auto capture = Prepare({.base_bitmaps = bitmaps});
    ASSERT_TRUE(capture.ok()) << capture.status();
    ASSERT_TRUE(Window(**capture).ok());
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    EXPECT_THAT((*exports)[0].full_read_reason, HasSubstr(of_vda));
    EXPECT_THAT((*exports)[1].full_read_reason, HasSubstr(of_vdb));
    for (const PinnedDiskExport& disk : *exports) EXPECT_EQ(disk.dirty_context, "");
    absl::Status released = (*capture)->Release(true);
    EXPECT_TRUE(released.ok()) << released;
  }
};

// Writes before, between and after every step; captures that fail at any stage. Each committed image is, byte by byte,
// what the disks held at the pause, made only of the image before and of what the bitmap calls changed.
TEST_F(QemuCaptureTest, EveryGenerationIsExactWhateverFailedBefore) {
  uint64_t seed = RandomU64();
  if (const char* chosen = std::getenv("STILL_SEED")) {
    ASSERT_TRUE(absl::SimpleAtoi(chosen, &seed));
  }
  std::cout << "STILL_SEED=" << seed << "\n";
  std::mt19937_64 random(seed);
  std::vector<std::string> images(ScriptedQemu::kDisks);
  Bitmaps bitmaps;
  int committed = 0;
  for (int generation = 0; generation < kGenerations; ++generation) {
    SCOPED_TRACE(generation);
    enum { kBeforePause, kAfterPin, kDuringDrain, kNever };
    // The first succeeds, so that the others have something to build on.
    auto fails = generation == 0 ? static_cast<uint64_t>(kNever) : random() % (2 * kNever);
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    auto capture = Prepare({.base_bitmaps = bitmaps});
    ASSERT_TRUE(capture.ok()) << capture.status();
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    if (fails == kBeforePause) continue;
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    const std::vector<std::string> point = qemu_->model();
    ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
    if (fails == kAfterPin) continue;  // The guard resumes, the capture releases.
    ASSERT_TRUE((*capture)->SaveStateAndResume(*std::move(paused)).ok());
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    if (fails == kDuringDrain) {
      ASSERT_TRUE(ReadExport((*exports)[0]).ok());
      EXPECT_TRUE((*capture)->Release(false).ok());
      continue;
    }
    for (size_t i = 0; i < ScriptedQemu::kDisks; ++i) {
      EXPECT_EQ((*exports)[i].full_read_reason, "");
      EXPECT_EQ((*exports)[i].dirty_context.empty(), generation == 0);
      auto image = ReadOver((*exports)[i], images[i]);
      ASSERT_TRUE(image.ok()) << image.status();
      ASSERT_TRUE(*image == point[i]) << "disk " << i << " differs";
      images[i] = *std::move(image);
    }
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    absl::Status released = (*capture)->Release(true);
    ASSERT_TRUE(released.ok()) << released;
    bitmaps = BitmapsOf(*exports);
    ++committed;
  }
  EXPECT_GT(committed, 1) << "this seed failed everything; it has shown little";
}

// What each is for: docs/qemu.md, "A capture".
TEST_F(QemuCaptureTest, TheseAndNoOtherCommandsAreSentInThePause) {
  auto disks = Prepare();
  ASSERT_TRUE(disks.ok()) << disks.status();
  auto report = Window(**disks);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(report->commands, ElementsAre("stop", "qom-set", "qom-set", "cont"));
  disks->reset();

  if (session::SetMigrationCapabilities(*qemu_->machine()->qmp, {{"background-snapshot", true}}).ok()) {
    qemu_->machine()->capabilities.background_memory = true;
  }
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  MemoryReader reader(std::move(pair->second));
  auto capture =
      session::PrepareQemuCapture(qemu_->machine(), {.max_pause = absl::Seconds(60)}, std::move(pair->first));
  ASSERT_TRUE(capture.ok()) << capture.status();
  report = Window(**capture);
  ASSERT_TRUE(report.ok()) << report.status();
  if (qemu_->machine()->capabilities.background_memory) {
    // Then only the question whether the memory is protected, as often as it takes, and, for a QEMU that does not resume
    // by itself (9.0 and newer), "cont".
    ASSERT_GE(report->commands.size(), 4u);
    const auto wait = report->commands.begin() + 4;
    EXPECT_THAT(std::vector<std::string>(report->commands.begin(), wait),
                ElementsAre("stop", "qom-set", "qom-set", "migrate"));
    EXPECT_THAT(std::vector<std::string>(wait, report->commands.end()),
                Each(AnyOf("query-migrate", "query-status", "cont")));
    EXPECT_LE(std::count(wait, report->commands.end(), "cont"), 1);
  } else {
    EXPECT_THAT(report->commands, ElementsAre("stop", "migrate", "blockdev-add", "blockdev-add", "qom-set",
                                              "blockdev-add", "blockdev-add", "qom-set", "cont"));
  }
  EXPECT_TRUE((*capture)->WaitForMemory(absl::Seconds(60)).ok());
  EXPECT_TRUE((*capture)->Release(false).ok());
}

TEST_F(QemuCaptureTest, ABitmapSurvivesARestartOnlyOnQcow2) {
  auto bitmaps = Capture();
  ASSERT_TRUE(bitmaps.ok()) << bitmaps.status();
  ASSERT_TRUE(qemu_->Quit().ok());
  Start();
  auto capture = Prepare({.base_bitmaps = *bitmaps});
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(Window(**capture).ok());
  auto exports = (*capture)->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  EXPECT_EQ((*exports)[0].full_read_reason, "");
  EXPECT_THAT((*exports)[1].full_read_reason, HasSubstr("not on this disk any more"));
}

TEST_F(QemuCaptureTest, ABitmapThatACrashLeftBehindIsNotBelieved) {
  auto bitmaps = Capture();
  ASSERT_TRUE(bitmaps.ok()) << bitmaps.status();
  ASSERT_TRUE(qemu_->Quit().ok());
  Start();  // Marks the stored bitmap as in use ...
  qemu_->Crash();
  Start();
  ExpectFullReads(*bitmaps, "was not stored at a crash", "not on this disk any more");
  // The commit above has removed it.
  ExpectFullReads(*bitmaps, "not on this disk any more", "not on this disk any more");
}

TEST_F(QemuCaptureTest, ABitmapThatIsNotOursIsLeftAlone) {
  nlohmann::json theirs = {{"node", "disk0"}, {"name", "backup-tool"}};
  ASSERT_TRUE(qemu_->machine()->qmp->Run("block-dirty-bitmap-add", theirs, absl::Seconds(60)).ok());
  ExpectFullReads({{"vda", "backup-tool"}}, "is not one of ours", "");
  // It is still there.
  EXPECT_TRUE(qemu_->machine()->qmp->Run("block-dirty-bitmap-remove", theirs, absl::Seconds(60)).ok());
}

TEST_F(QemuCaptureTest, WhatIsKeptForAPinIsBounded) {
  const CaptureOptions options{.pin_space_limit = 1 << 20};
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 1).ok());
  auto capture = Prepare(options);
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(Window(**capture).ok());
  EXPECT_TRUE((*capture)->CheckPins().ok());
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes / 2, 2).ok());
  absl::Status full = (*capture)->CheckPins();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_THAT(std::string(full.message()), HasSubstr("1 MiB"));
  EXPECT_TRUE((*capture)->Release(false).ok());
  EXPECT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 3).ok());
  EXPECT_TRUE(Capture().ok()) << "the next one";
}

TEST_F(QemuCaptureTest, AReaderThatHangsHoldsNeitherTheGuestNorTheRelease) {
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 1).ok());
  auto capture = Prepare();
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(Window(**capture).ok());
  auto exports = (*capture)->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  auto silent = ConnectUnix((*exports)[0].nbd_socket);  // Not even a handshake.
  ASSERT_TRUE(silent.ok());
  auto hung = HungReader::Start((*exports)[1]);
  ASSERT_TRUE(hung.ok()) << hung.status();
  EXPECT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 2).ok()) << "the guest waits for the reader";
  EXPECT_TRUE(StopAndContinue().ok()) << "a drain waits for the reader";
  EXPECT_TRUE((*capture)->CheckPins().ok());
  absl::Status released = (*capture)->Release(false);
  EXPECT_TRUE(released.ok()) << released;
  EXPECT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 3).ok());
  EXPECT_TRUE(StopAndContinue().ok());
  EXPECT_TRUE(Capture().ok()) << "the next one";
}

TEST_F(QemuCaptureTest, AReaderThatHangsIsCutOffInTimeAndItAlone) {
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 1).ok());
  auto capture = Prepare({.disk_stall_limit = absl::Seconds(2)});
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(Window(**capture).ok());
  const std::vector<std::string> point = qemu_->model();
  auto exports = (*capture)->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  auto hung = HungReader::Start((*exports)[1]);
  ASSERT_TRUE(hung.ok()) << hung.status();
  const absl::Time end = absl::Now() + absl::Seconds(60);
  absl::Status pins;
  while ((pins = (*capture)->CheckPins()).ok() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(pins.code(), absl::StatusCode::kDeadlineExceeded) << pins;
  EXPECT_TRUE(StopAndContinue().ok()) << "QEMU still has it";
  EXPECT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 2).ok());
  auto image = ReadExport((*exports)[1]);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_TRUE(*image == point[1]);
  EXPECT_TRUE((*capture)->Release(false).ok());
}

}  // namespace
}  // namespace still::testing
