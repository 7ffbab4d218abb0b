// The promises of session/hypervisor/hypervisor.h, kept by every implementation.
#include "tests/contract/hypervisor/vm_contract.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"

namespace still::testing {
namespace {

using session::CaptureOptions;
using session::PausedVm;
using session::PauseReport;
using session::PinnedDiskExport;
using session::VmCapture;
using ::testing::Not;

std::string BestMethod(const session::Capabilities& can) {
  if (can.engine_memory) return "engine";
  return can.background_memory ? "background" : "stopped";
}

TEST_P(VmContract, ACaptureHoldsOneInstantAndTheSourceRunsOn) {
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_TRUE(RunsUnpaused(*source_)) << "during the drain";
  auto snapshot = Drain(*taken);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_GT(taken->pause.paused, absl::ZeroDuration());
  EXPECT_GE(taken->pause.commands.size(), 2u);
  EXPECT_EQ(taken->pause.memory_method, BestMethod(source_->vm().capabilities())) << taken->pause.memory_method_reason;
  EXPECT_GT(taken->capture->memory_bytes_written(), (kFilledEnd - kFilledBegin) / 2);
  EXPECT_TRUE(taken->capture->Release(true).ok());
  EXPECT_TRUE(taken->capture->Release(true).ok()) << "a second time";
  EXPECT_TRUE(RunsUnpaused(*source_)) << "after the release";
}

TEST_P(VmContract, ARestoredVmContinuesAndCanBeCapturedAgain) {
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << taken.status();
  auto snapshot = Drain(*taken);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  uint32_t counter = taken->counter;
  ASSERT_TRUE(taken->capture->Release(true).ok());
  for (int generation = 2; generation <= 3; ++generation) {
    auto restored = Started(implementation_->Restore(NewDirectory(), *std::move(snapshot)));
    ASSERT_NE(restored, nullptr);
    auto paused = restored->vm().IsPaused();
    ASSERT_TRUE(paused.ok()) << paused.status();
    EXPECT_TRUE(*paused);
    ASSERT_TRUE(restored->vm().Resume().ok());
    ASSERT_TRUE(restored->vm().Resume().ok()) << "a second time";
    ASSERT_TRUE(RunsUnpaused(*restored));
    auto again = Take(*restored);
    ASSERT_TRUE(again.ok()) << again.status();
    snapshot = Drain(*again);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status();
    EXPECT_GT(again->counter, counter) << "it did not continue";
    counter = again->counter;
  }
}

TEST_P(VmContract, NothingRunsWhilePaused) {
  auto capture = source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  EXPECT_TRUE(source_->vm().IsPaused().value_or(false));
  auto before = source_->CopyOfDisk("vda");
  auto after = source_->CopyOfDisk("vda");
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_TRUE(*before == *after);
  auto report = (*capture)->SaveStateAndResume(*std::move(paused));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->memory_method, "none");
  EXPECT_TRUE(RunsUnpaused(*source_));
}

TEST_P(VmContract, AGuardThatIsDroppedResumes) {
  auto capture = source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE((*capture)->Pause().ok());
  EXPECT_TRUE(RunsUnpaused(*source_));
  EXPECT_TRUE((*capture)->Release(false).ok());
}

TEST_P(VmContract, DisksAloneAreOfOneInstantToo) {
  auto taken = Take(*source_, {.memory = false});
  ASSERT_TRUE(taken.ok()) << taken.status();
  auto exports = taken->capture->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  ASSERT_TRUE(GetsOn(*source_));
  uint32_t newest[2];
  for (size_t i = 0; i < 2; ++i) {
    auto image = ReadExport((*exports)[i]);
    ASSERT_TRUE(image.ok()) << image.status();
    EXPECT_TRUE(*image == taken->disks_at_the_point[i]);
    newest[i] = NewestRecord(*image);
  }
  EXPECT_LE(newest[1], newest[0]);
  EXPECT_LE(newest[0], newest[1] + 1);
}

TEST_P(VmContract, OneCaptureAtATime) {
  auto first = source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE((*first)->Release(false).ok());
  EXPECT_TRUE(source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd()).ok());
}

TEST_P(VmContract, CancelledAtAnyStageTheVmRuns) {
  for (int stage = 0; stage < 5; ++stage) {
    SCOPED_TRACE(stage);
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    MemoryReader reader(std::move(pair->second));
    auto capture = source_->vm().PrepareCapture({.max_pause = kPatience}, std::move(pair->first));
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto run = [&]() -> absl::Status {
      auto cancel_at = [&](int now) {
        if (stage == now) (*capture)->Cancel();
      };
      cancel_at(0);
      STILL_ASSIGN_OR_RETURN(PausedVm paused, (*capture)->Pause());
      cancel_at(1);
      STILL_RETURN_IF_ERROR((*capture)->PinDisks(paused));
      cancel_at(2);
      STILL_RETURN_IF_ERROR((*capture)->SaveStateAndResume(std::move(paused)).status());
      cancel_at(3);
      STILL_RETURN_IF_ERROR((*capture)->ExportDisks().status());
      cancel_at(4);
      return (*capture)->WaitForMemory(kPatience);
    };
    absl::Status status = run();
    // At the last stage the memory may have been written already.
    if (stage < 4) {
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
    }
    EXPECT_TRUE(RunsUnpaused(*source_));
    EXPECT_TRUE((*capture)->Release(false).ok());
  }
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << "after all that: " << taken.status();
  EXPECT_TRUE(Drain(*taken).ok());
}

TEST_P(VmContract, AReaderThatVanishesEndsTheStreamOnly) {
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  auto capture = source_->vm().PrepareCapture({.max_pause = kPatience}, std::move(pair->first));
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto run = [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(PausedVm paused, (*capture)->Pause());
    STILL_RETURN_IF_ERROR((*capture)->PinDisks(paused));
    pair->second.Reset();
    STILL_RETURN_IF_ERROR((*capture)->SaveStateAndResume(std::move(paused)).status());
    return (*capture)->WaitForMemory(kPatience);
  };
  EXPECT_FALSE(run().ok());
  EXPECT_TRUE(RunsUnpaused(*source_));
  EXPECT_TRUE((*capture)->Release(false).ok());
  EXPECT_TRUE(RunsUnpaused(*source_));
}

TEST_P(VmContract, AReaderThatHangsIsGivenUp) {
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  auto capture = source_->vm().PrepareCapture({.max_pause = kPatience}, std::move(pair->first));
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto run = [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(PausedVm paused, (*capture)->Pause());
    STILL_RETURN_IF_ERROR((*capture)->PinDisks(paused));
    STILL_RETURN_IF_ERROR((*capture)->SaveStateAndResume(std::move(paused)).status());
    return (*capture)->WaitForMemory(absl::Milliseconds(300));
  };
  absl::Status status = run();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_TRUE(RunsUnpaused(*source_));
  EXPECT_TRUE((*capture)->Release(false).ok());
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << "the next one: " << taken.status();
  EXPECT_TRUE(Drain(*taken).ok());
}

TEST_P(VmContract, ACrashedHypervisorIsReportedAndLeavesNothingHanging) {
  auto taken = Take(*source_);
  ASSERT_TRUE(taken.ok()) << taken.status();
  source_->Crash();
  ProcessExit exit = source_->vm().WaitForExit();
  EXPECT_NE(exit.signal, 0);
  EXPECT_FALSE(source_->vm().guest_shut_down());
  EXPECT_EQ(taken->capture->ExportDisks().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(source_->vm().IsPaused().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(taken->capture->Release(false).ok());
  source_->vm().Kill();
}

TEST_P(VmContract, KillEndsIt) {
  source_->vm().Kill();
  source_->vm().WaitForExit();
  EXPECT_FALSE(source_->vm().guest_shut_down());
  EXPECT_FALSE(source_->vm().IsPaused().ok());
}

TEST_P(VmContract, AnIncrementalCaptureNamesEverythingThatChanged) {
  if (!source_->vm().capabilities().incremental_disk) return;  // Nothing is promised.
  std::vector<std::string> images;
  CaptureOptions options{.memory = false};
  // The second one is abandoned: the third must miss nothing of what it would have held.
  for (int generation = 0; generation < 4; ++generation) {
    SCOPED_TRACE(generation);
    bool abandoned = generation == 1;
    ASSERT_TRUE(GetsOn(*source_));
    auto taken = Take(*source_, options);
    ASSERT_TRUE(taken.ok()) << taken.status();
    auto exports = taken->capture->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    ASSERT_TRUE(GetsOn(*source_));
    for (size_t i = 0; i < 2; ++i) {
      auto image = ReadExport((*exports)[i]);
      ASSERT_TRUE(image.ok()) << image.status();
      EXPECT_EQ((*exports)[i].full_read_reason, "");
      if (generation == 0) {
        images.push_back(*image);
        continue;
      }
      auto dirty = ReadDirtyRanges((*exports)[i]);
      ASSERT_TRUE(dirty.ok()) << dirty.status();
      std::string rebuilt = images[i];
      uint64_t total = 0;
      for (const DirtyRange& range : *dirty) {
        rebuilt.replace(range.offset, range.size, *image, range.offset, range.size);
        total += range.size;
      }
      EXPECT_TRUE(rebuilt == *image);
      EXPECT_LT(total, image->size() / 2) << "everything is dirty";
      if (!abandoned) images[i] = rebuilt;
    }
    ASSERT_TRUE(taken->capture->Release(!abandoned).ok());
    if (abandoned) continue;
    options.base_bitmaps.clear();
    for (const PinnedDiskExport& disk : *exports) options.base_bitmaps.push_back({disk.name, disk.bitmap});
  }
}

TEST_P(VmContract, AnUnknownBaseBitmapMeansAFullReadAndSaysSo) {
  auto taken = Take(*source_, {.memory = false, .base_bitmaps = {{"vda", "still-0123456789abcdef"}, {"vdb", "mine"}}});
  ASSERT_TRUE(taken.ok()) << taken.status();
  auto exports = taken->capture->ExportDisks();
  ASSERT_TRUE(exports.ok()) << exports.status();
  for (const PinnedDiskExport& disk : *exports) {
    EXPECT_EQ(disk.dirty_context, "");
    EXPECT_THAT(disk.full_read_reason, Not(""));
  }
}

TEST_P(VmContract, AMemorySinkIsGivenExactlyWithMemory) {
  EXPECT_EQ(source_->vm().PrepareCapture({.memory = true}, OwnedFd()).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(source_->vm().PrepareCapture({.memory = false, .max_pause = kPatience}, OwnedFd()).ok())
      << "the refused one left nothing behind";
}

std::string NameOf(const ::testing::TestParamInfo<VmContract::ParamType>& info) { return info.param()->name(); }

INSTANTIATE_TEST_SUITE_P(All, VmContract,
                         ::testing::Values(&MakeFakeImplementation, &MakeQemuImplementation,
                                           &MakeBackgroundQemuImplementation, &MakeStoppedQemuImplementation),
                         NameOf);

}  // namespace
}  // namespace still::testing
