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
using ::testing::Not;

HostFacts Host();

manifestpb::Machine Saved() {
  manifestpb::Machine machine;
  machine.set_hypervisor("qemu");
  machine.set_hypervisor_version("7.2.22");
  machine.set_machine_type("pc-q35-7.2");
  machine.set_accelerator("tcg");
  machine.set_device_state_format("qemu-migration-3");
  machine.set_cpu_model("max");
  machine.set_ram_block("pc.ram");
  for (const std::string& device : Host().planned_devices) machine.add_devices(device);
  machine.add_nics()->set_kind("isolated");
  return machine;
}

HostFacts Host() {
  return {.hypervisor_version = "7.2.9",
          .machine_types = {"pc-q35-7.1", "pc-q35-7.2"},
          .devices = {"vhost-vsock-pci", "virtio-blk-pci", "virtio-net-pci", "virtio-rng-pci"},
          .networks = {"hubport", "user"},
          .cpu_models = {"host", "max"},
          .planned_devices = {"virtio-rng-pci@0x2", "virtio-net-pci@0x4", "virtio-blk-pci@0x8", "virtio-blk-pci@0x9"}};
}

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
  absl::Status status = CheckWarm(Saved(), host);
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(status.message(), HasSubstr("newer than the 6.2.0"));
  EXPECT_THAT(status.message(), HasSubstr("no machine type pc-q35-7.2"));
  EXPECT_THAT(status.message(), HasSubstr("--cold"));
}

manifestpb::Machine SavedUnderKvm() {
  manifestpb::Machine saved = Saved();
  saved.set_accelerator("kvm");
  saved.set_cpu_model("host");
  return saved;
}

HostFacts KvmHost() {
  HostFacts host = Host();
  host.kvm = true;
  host.cpu = {{"avx2", true}, {"avx512f", false}, {"monitor", false}, {"sse4.2", true}, {"svm", true}};
  host.tsc = {.hz = 2'400'000'000, .scaling = false};
  return host;
}

TEST(RestoreCheck, UnderKvmTheGuestMustGetWhatItWasGiven) {
  manifestpb::Machine saved = SavedUnderKvm();
  for (const char* feature : {"avx2", "avx512f", "sse4.2"}) saved.add_guest_cpu_features(feature);
  EXPECT_THAT(MachineDifferences(saved, Host()), ElementsAre(HasSubstr("under KVM")));
  HostFacts host = KvmHost();
  EXPECT_THAT(MachineDifferences(saved, host), ElementsAre(HasSubstr("KVM gives guests here no avx512f")));
  host.cpu["avx512f"] = true;
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
}

TEST(RestoreCheck, WhatTheGuestWasNotGivenDoesNotMatter) {
  manifestpb::Machine saved = SavedUnderKvm();
  // A word that this QEMU does not know any more; and the kernel's own words, which only old snapshots go by.
  for (const char* feature : {"avx2", "pcommit"}) saved.add_guest_cpu_features(feature);
  for (const char* flag : {"rep_good", "avx512f", "monitor"}) saved.add_cpu_features(flag);
  EXPECT_THAT(MachineDifferences(saved, KvmHost()), IsEmpty());
}

TEST(RestoreCheck, AnOldSnapshotIsComparedByTheFlagsThatGuestsCanBeGiven) {
  manifestpb::Machine saved = SavedUnderKvm();
  for (const char* flag : {"avx2", "constant_tsc", "monitor", "rep_good", "sse4_2"}) saved.add_cpu_features(flag);
  HostFacts host = KvmHost();
  // The processors of both have it, and KVM gives it to nobody.
  host.cpu_flags = {"avx2", "monitor", "sse4_2"};
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
  saved.add_cpu_features("avx512f");
  EXPECT_THAT(MachineDifferences(saved, host), ElementsAre(HasSubstr("no avx512f")));
}

TEST(RestoreCheck, AnotherCounterMattersToAGuestThatTellsTheTimeByIt) {
  manifestpb::Machine saved = SavedUnderKvm();
  saved.set_tsc_hz(2'900'000'000);
  saved.set_clock_source(manifestpb::Machine::CLOCK_SOURCE_TSC);
  HostFacts host = KvmHost();
  EXPECT_THAT(MachineDifferences(saved, host),
              ElementsAre(HasSubstr("2900.000 MHz, and here it runs at 2400.000 MHz")));
  EXPECT_THAT(MachineNotes(saved, host), IsEmpty()) << "told already";
  host.tsc.scaling = true;
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
  // As far off as a calibration is.
  host = KvmHost();
  saved.set_tsc_hz(2'400'240'000);
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
}

TEST(RestoreCheck, AnotherCounterIsOnlySaidWhereTheGuestHasAnotherClock) {
  manifestpb::Machine saved = SavedUnderKvm();
  saved.set_tsc_hz(2'900'000'000);
  saved.set_clock_source(manifestpb::Machine::CLOCK_SOURCE_OTHER);
  EXPECT_THAT(MachineDifferences(saved, KvmHost()), IsEmpty());
  EXPECT_THAT(MachineNotes(saved, KvmHost()), ElementsAre(HasSubstr("does not tell the time by it")));
  saved.clear_clock_source();
  EXPECT_THAT(MachineDifferences(saved, KvmHost()), IsEmpty());
  EXPECT_THAT(MachineNotes(saved, KvmHost()), ElementsAre(HasSubstr("its clock runs wrong")));
  saved.clear_tsc_hz();
  EXPECT_THAT(MachineNotes(saved, KvmHost()), IsEmpty()) << "a snapshot of before the field";
}

TEST(RestoreCheck, DevicesAreComparedOneByOneWithTheirPlaces) {
  HostFacts host = Host();
  host.planned_devices = {"virtio-rng-pci@0x2", "virtio-net-pci@0x5", "virtio-blk-pci@0x8", "virtio-blk-pci@0x9"};
  EXPECT_THAT(MachineDifferences(Saved(), host),
              ElementsAre(HasSubstr("saved with virtio-net-pci@0x4, which it would not have"),
                          HasSubstr("saved without virtio-net-pci@0x5, which it would have")));
  EXPECT_THAT(CheckWarm(Saved(), host).message(), HasSubstr("--cold"));
  // What an older version did not write down is not compared.
  manifestpb::Machine saved = Saved();
  saved.clear_devices();
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
}

TEST(RestoreCheck, WhatQemuLacksIsNamedAndNothingIsOfferedThatLacksItToo) {
  HostFacts host = Host();
  host.devices = {"virtio-rng-pci"};
  host.networks = {"hubport"};
  host.firmware = absl::NotFoundError("no qboot.rom");
  host.vsock = absl::FailedPreconditionError("no /dev/vhost-vsock");
  for (const absl::Status& status : {CheckWarm(Saved(), host), CheckCold(Saved(), host)}) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status));
    EXPECT_THAT(status.message(), HasSubstr("QEMU 7.2.9 has no virtio-net-pci, virtio-blk-pci;"));
    EXPECT_THAT(status.message(), HasSubstr("no network of kind user;"));
    EXPECT_THAT(status.message(), HasSubstr("no qboot.rom"));
    EXPECT_THAT(status.message(), HasSubstr("no /dev/vhost-vsock"));
    EXPECT_THAT(status.message(), Not(HasSubstr("--cold")));
  }
  EXPECT_TRUE(CheckCold(Saved(), Host()).ok());
}

TEST(RestoreCheck, AProcessorModelMustBeKnown) {
  manifestpb::Machine saved = Saved();
  saved.set_cpu_model("Icelake-Client,-avx512f");
  EXPECT_THAT(MachineDifferences(saved, Host()), ElementsAre(HasSubstr("no processor Icelake-Client")));
  HostFacts host = Host();
  host.cpu_models.push_back("Icelake-Client");
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
}

TEST(RestoreCheck, AFirmwareFileMustHaveItsSize) {
  manifestpb::Machine saved = Saved();
  saved.set_firmware("/usr/share/ovmf/OVMF.fd");
  saved.set_firmware_bytes(2 << 20);
  HostFacts host = Host();
  host.firmware_bytes = 2 << 20;
  EXPECT_THAT(MachineDifferences(saved, host), IsEmpty());
  host.firmware_bytes = 4 << 20;
  EXPECT_THAT(MachineDifferences(saved, host), ElementsAre(HasSubstr("had 2097152 bytes, and here it has 4194304")));
}

TEST(RestoreCheck, TheMemoryBlockMustHaveItsName) {
  manifestpb::Machine saved = Saved();
  saved.set_ram_block("ram-node0");
  EXPECT_THAT(MachineDifferences(saved, Host()), ElementsAre(HasSubstr("called ram-node0")));
}

TEST(RestoreCheck, DisksOfAnAdoptedProcessAreNoMachine) {
  manifestpb::Machine saved = Saved();
  saved.set_hypervisor("process");
  EXPECT_THAT(CheckCold(saved, Host()).message(), HasSubstr("still export"));
  saved.clear_hypervisor();  // An import.
  EXPECT_TRUE(CheckCold(saved, Host()).ok());
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
