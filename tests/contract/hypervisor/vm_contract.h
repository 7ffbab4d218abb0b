// The fixture of the contract suite: the counting guest on one implementation, and the steps of a capture in one call.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "gtest/gtest.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/contract/hypervisor/vm_under_test.h"

namespace still::testing {

// Far more than anything takes on a loaded machine; only a failing test waits for it.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

bool Eventually(const std::function<bool()>& condition);

// A capture that has come to the point, and what was true there.
struct Taken {
  std::unique_ptr<session::VmCapture> capture;
  std::unique_ptr<MemoryReader> memory;
  std::vector<std::string> disks_at_the_point;
  session::PauseReport pause;
  uint32_t counter = 0;  // In memory at the point; known after Drain.
};

class VmContract : public ::testing::TestWithParam<std::unique_ptr<Implementation> (*)()> {
 protected:
  void SetUp() override;
  void TearDown() override;

  std::string NewDirectory();
  std::unique_ptr<VmUnderTest> Started(absl::StatusOr<std::unique_ptr<VmUnderTest>> vm);
  // True when the guest gets on within kPatience.
  static bool GetsOn(VmUnderTest& vm);
  static bool RunsUnpaused(VmUnderTest& vm);

  // PrepareCapture to SaveStateAndResume.
  static absl::StatusOr<Taken> Take(VmUnderTest& vm, session::CaptureOptions options = {});
  // Drains all of it into files; checks that the disks are those of the point, and that memory and disks agree.
  absl::StatusOr<TestSnapshot> Drain(Taken& taken);

  std::unique_ptr<Implementation> implementation_;
  std::unique_ptr<VmUnderTest> source_;
  std::vector<std::string> directories_;
};

}  // namespace still::testing
