// Captures of a ScriptedQemu, for tests that know what its disks hold.
#pragma once

#include <stdlib.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_capture.h"
#include "tests/contract/hypervisor/scripted_qemu.h"
#include "tests/contract/hypervisor/snapshot_files.h"

namespace still::testing {

using Bitmaps = std::vector<std::pair<std::string, std::string>>;

inline Bitmaps BitmapsOf(const std::vector<session::PinnedDiskExport>& exports) {
  Bitmaps bitmaps;
  for (const session::PinnedDiskExport& disk : exports) bitmaps.push_back({disk.name, disk.bitmap});
  return bitmaps;
}

// What a reader of the export that has `base` makes of it.
inline absl::StatusOr<std::string> ReadOver(const session::PinnedDiskExport& disk, std::string base) {
  STILL_ASSIGN_OR_RETURN(std::string all, ReadExport(disk));
  if (disk.dirty_context.empty()) return all;
  STILL_ASSIGN_OR_RETURN(std::vector<DirtyRange> dirty, ReadDirtyRanges(disk));
  for (const DirtyRange& range : dirty) base.replace(range.offset, range.size, all, range.offset, range.size);
  return base;
}

class QemuCaptureFixture : public ::testing::Test {
 protected:
  // Far more than anything takes on a loaded machine.
  static constexpr absl::Duration kPatience = absl::Seconds(60);

  void SetUp() override {
    directory_ = JoinPath(::testing::TempDir(), "still-capture-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    Start();
  }
  void TearDown() override {
    qemu_.reset();
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }
  void Start() {
    auto qemu = ScriptedQemu::Start(directory_);
    ASSERT_TRUE(qemu.ok()) << qemu.status();
    qemu_ = *std::move(qemu);
  }
  absl::StatusOr<std::unique_ptr<session::VmCapture>> Prepare(session::CaptureOptions options = {}) {
    options.memory = false;
    options.max_pause = kPatience;
    return session::PrepareQemuCapture(qemu_->machine(), options, OwnedFd());
  }
  static absl::StatusOr<session::PauseReport> Window(session::VmCapture& capture) {
    STILL_ASSIGN_OR_RETURN(session::PausedVm paused, capture.Pause());
    STILL_RETURN_IF_ERROR(capture.PinDisks(paused));
    return capture.SaveStateAndResume(std::move(paused));
  }
  // A committed capture; gives its bitmaps.
  absl::StatusOr<Bitmaps> Capture() {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<session::VmCapture> capture, Prepare());
    STILL_RETURN_IF_ERROR(Window(*capture).status());
    STILL_ASSIGN_OR_RETURN(std::vector<session::PinnedDiskExport> exports, capture->ExportDisks());
    STILL_RETURN_IF_ERROR(capture->Release(true));
    return BitmapsOf(exports);
  }

  std::string directory_;
  std::unique_ptr<ScriptedQemu> qemu_;
};

}  // namespace still::testing
