#include "snapshot/restore_check.h"

#include <stdlib.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

manifestpb::Machine Saved() {
  manifestpb::Machine machine;
  machine.set_hypervisor("qemu");
  machine.set_hypervisor_version("7.2.22");
  machine.set_machine_type("pc-q35-7.2");
  machine.set_accelerator("tcg");
  machine.set_device_state_format("qemu-migration-3");
  return machine;
}

HostFacts Host() { return {.hypervisor_version = "7.2.9", .machine_types = {"pc-q35-7.1", "pc-q35-7.2"}}; }

TEST(RestoreCheck, TheSameReleaseIsAsGoodAsTheSameVersion) {
  EXPECT_THAT(MachineDifferences(Saved(), Host()), IsEmpty());
}

TEST(RestoreCheck, ANewerHypervisorLoadsWhatAnOlderOneSaved) {
  HostFacts host = Host();
  host.hypervisor_version = "10.0.2";
  EXPECT_THAT(MachineDifferences(Saved(), host), IsEmpty());
  host.hypervisor_version = "7.1.0";
  EXPECT_THAT(MachineDifferences(Saved(), host), ElementsAre(HasSubstr("7.2.22, newer than the 7.1.0")));
}

TEST(RestoreCheck, EverythingThatDiffersIsNamedAndColdIsOffered) {
  HostFacts host = Host();
  host.hypervisor_version = "6.2.0";
  host.machine_types = {"pc-q35-6.2"};
  absl::Status status = CheckMachine(Saved(), host);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(status.message(), HasSubstr("newer than the 6.2.0"));
  EXPECT_THAT(status.message(), HasSubstr("no machine type pc-q35-7.2"));
  EXPECT_THAT(status.message(), HasSubstr("--cold"));
}

TEST(RestoreCheck, UnderKvmTheProcessorMustHaveWhatTheGuestWasGiven) {
  manifestpb::Machine saved = Saved();
  saved.set_accelerator("kvm");
  for (const char* feature : {"avx2", "avx512f", "sse4_2"}) saved.add_cpu_features(feature);
  HostFacts host = Host();
  EXPECT_THAT(MachineDifferences(saved, host), ElementsAre(HasSubstr("under KVM")));
  host.kvm = true;
  host.cpu_features = {"avx2", "sse4_2"};
  EXPECT_THAT(MachineDifferences(saved, host), ElementsAre(HasSubstr("lacks avx512f")));
  host.cpu_features = {"amx_tile", "avx2", "avx512f", "sse4_2"};
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
}

TEST(RestoreCheck, AnotherHypervisorsMemoryIsNotOurs) {
  manifestpb::Machine saved = Saved();
  saved.set_hypervisor("vz");
  EXPECT_THAT(MachineDifferences(saved, Host()), ElementsAre(HasSubstr("saved by vz")));
}

TEST(RestoreCheck, AFreezeProvesAnAgentEvenInSnapshotsOfBeforeTheField) {
  manifestpb::Snapshot snapshot;
  EXPECT_EQ(AgentOf(snapshot), AgentInImage::kAbsent);
  snapshot.mutable_consistency()->add_frozen()->set_mount_point("/data");
  EXPECT_EQ(AgentOf(snapshot), AgentInImage::kPresent);
  snapshot.clear_consistency();
  snapshot.mutable_machine()->set_guest_agent("0.1.0");
  EXPECT_EQ(AgentOf(snapshot), AgentInImage::kPresent);
}

TEST(RestoreCheck, TooLittleMemoryIsSaidWithBothNumbers) {
  EXPECT_TRUE(CheckMemory(512 << 20, 512 << 20).ok());
  absl::Status status = CheckMemory(512 << 20, 100 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(status.message(), HasSubstr("needs 512 MiB and 100 MiB are available"));
}

TEST(RestoreCheck, AvailableMemoryIsWhatTheControlGroupLeaves) {
  std::string root = JoinPath(::testing::TempDir(), "still-memory-XXXXXX");
  ASSERT_NE(::mkdtemp(root.data()), nullptr);
  ASSERT_TRUE(MakeDirectories(root + "/proc").ok());
  ASSERT_TRUE(MakeDirectories(root + "/sys/fs/cgroup").ok());
  ASSERT_TRUE(WriteFileAtomically(root + "/proc/meminfo", "MemTotal: 8000 kB\nMemAvailable:    4000 kB\n").ok());
  EXPECT_EQ(AvailableMemory(root), 4000u << 10);
  ASSERT_TRUE(WriteFileAtomically(root + "/sys/fs/cgroup/memory.max", "max\n").ok());
  EXPECT_EQ(AvailableMemory(root), 4000u << 10);
  ASSERT_TRUE(WriteFileAtomically(root + "/sys/fs/cgroup/memory.max", "1048576\n").ok());
  ASSERT_TRUE(WriteFileAtomically(root + "/sys/fs/cgroup/memory.current", "48576\n").ok());
  EXPECT_EQ(AvailableMemory(root), 1000000u);
  EXPECT_TRUE(RemoveTree(root).ok());
}

}  // namespace
}  // namespace still::snapshot
