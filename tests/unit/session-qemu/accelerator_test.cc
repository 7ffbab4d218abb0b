#include "session/hypervisor/accelerator.h"

#include <stdlib.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

class AcceleratorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-root-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }
  void HaveDevice() {
    ASSERT_TRUE(MakeDirectories(JoinPath(root_, "dev")).ok());
    ASSERT_TRUE(WriteFileAtomically(JoinPath(root_, "dev/kvm"), "").ok());
  }
  void HaveModule(const std::string& name) { ASSERT_TRUE(MakeDirectories(JoinPath(root_, "sys/module/" + name)).ok()); }
  std::string root_;
};

TEST_F(AcceleratorTest, NoDeviceMeansEmulation) {
  HaveModule("kvm_intel");
  EXPECT_EQ(DetectAccelerator(root_).name, "tcg");
  EXPECT_EQ(ChooseAccelerator("kvm", root_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(AcceleratorTest, ADeviceWithoutHardwareBehindItIsNotBelieved) {
  HaveDevice();
  HaveModule("kvm");
  Accelerator found = DetectAccelerator(root_);
  EXPECT_EQ(found.name, "tcg");
  EXPECT_THAT(found.reason, HasSubstr("kvm_amd"));
}

TEST_F(AcceleratorTest, DeviceAndBackEndMeanKvm) {
  for (const char* module : {"kvm_intel", "kvm_amd"}) {
    HaveDevice();
    HaveModule(module);
    EXPECT_EQ(DetectAccelerator(root_).name, "kvm");
    ASSERT_TRUE(RemoveTree(JoinPath(root_, "sys")).ok());
  }
}

TEST_F(AcceleratorTest, AnExplicitChoiceCounts) {
  HaveDevice();
  EXPECT_EQ(ChooseAccelerator("kvm", root_).value().name, "kvm");
  EXPECT_EQ(ChooseAccelerator("tcg", root_).value().name, "tcg");
  EXPECT_EQ(ChooseAccelerator("auto", root_).value().name, "tcg");
  EXPECT_EQ(ChooseAccelerator("hvf", root_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace still::session
