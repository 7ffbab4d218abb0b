// The script and the device state of an exported machine. That QEMU likes them: tests/e2e/export_test.py.
#include "snapshot/export_machine.h"

#include <gmock/gmock.h>

namespace still::snapshot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string DeviceState(const std::string& run_state) {
  std::string state = "before\x04";
  state.append("\0\0\0\x2a\x0bglobalstate\0\0\0\0\0\0\0\1", 24);
  state.append({'\0', '\0', '\0', static_cast<char>(run_state.size() + 1)});
  state.append(run_state);
  state.append(100 - run_state.size(), '\0');
  return state + "after";
}

TEST(RunningDeviceStateTest, APausedMachineRunsOnceItIsLoaded) {
  auto running = RunningDeviceState(DeviceState("paused"));
  ASSERT_TRUE(running.ok()) << running.status();
  EXPECT_EQ(*running, DeviceState("running"));
  EXPECT_EQ(*RunningDeviceState(*running), *running);
}

TEST(RunningDeviceStateTest, WhatIsNotDeviceStateIsRefused) {
  for (const std::string& state :
       {std::string(), std::string("globalstate"), DeviceState("io-error"), DeviceState("paused").substr(0, 30)}) {
    EXPECT_TRUE(absl::IsDataLoss(RunningDeviceState(state).status()));
  }
}

manifestpb::Snapshot Snapshot(bool memory) {
  manifestpb::Snapshot snapshot;
  snapshot.set_id("0123456789abcdef");
  auto add = [&](const char* name, manifestpb::Image::Role role) {
    snapshot.add_images()->set_name(name);
    snapshot.mutable_images()->rbegin()->set_role(role);
  };
  add("vda", manifestpb::Image::ROLE_DISK);
  add("kernel", manifestpb::Image::ROLE_KERNEL);
  if (memory) {
    add("ram", manifestpb::Image::ROLE_RAM);
    add("devices", manifestpb::Image::ROLE_DEVICE_STATE);
  }
  manifestpb::Machine& machine = *snapshot.mutable_machine();
  machine.set_hypervisor("qemu");
  machine.set_machine_type("pc-q35-7.2");
  machine.set_cpu_model("max");
  machine.set_accelerator("tcg");
  machine.set_vcpus(2);
  machine.set_memory_bytes(512 << 20);
  machine.set_direct_kernel(true);
  machine.set_cmdline("quiet it's");
  machine.add_disks()->set_name("vda");
  return snapshot;
}

TEST(MachineScriptTest, NamesFilesBesideItAndNoDescriptors) {
  auto script = MachineScript(Snapshot(/*memory=*/true));
  ASSERT_TRUE(script.ok()) << script.status();
  EXPECT_THAT(*script, AllOf(HasSubstr("mem-path=ram'"), HasSubstr("'-incoming' 'fd:9'"), HasSubstr("9<devices"),
                             HasSubstr("\"filename\":\"vda.raw\""), HasSubstr("'-kernel' 'kernel'"),
                             HasSubstr("path=qmp.sock"), HasSubstr("quiet it'\\''s"), HasSubstr("--cold")));
  EXPECT_THAT(*script, AllOf(Not(HasSubstr("/proc/self/fd")), Not(HasSubstr("'-S'")), Not(HasSubstr("fd=100"))));
  EXPECT_THAT(*script, Not(HasSubstr("vsock")));
}

TEST(MachineScriptTest, SaysWhatTheHostMustHaveForAVsockDevice) {
  manifestpb::Snapshot snapshot = Snapshot(/*memory=*/true);
  snapshot.mutable_machine()->set_vsock(true);
  snapshot.mutable_machine()->set_vsock_port(1024);
  EXPECT_THAT(*MachineScript(snapshot), AllOf(HasSubstr("modprobe vhost_vsock"), HasSubstr("'vhost-vsock-pci,")));
}

TEST(MachineScriptTest, AMachineSavedWithAPortToTheQemuGuestAgentHasIt) {
  manifestpb::Snapshot snapshot = Snapshot(/*memory=*/true);
  EXPECT_THAT(*MachineScript(snapshot), Not(HasSubstr("virtserialport")));
  snapshot.mutable_machine()->add_devices("virtserialport");
  EXPECT_THAT(*MachineScript(snapshot), AllOf(HasSubstr("'virtserialport,"), HasSubstr("id=qga,path=qga.sock")));
}

TEST(MachineScriptTest, WithoutMemoryItOnlyBoots) {
  EXPECT_THAT(*MachineScript(Snapshot(/*memory=*/false)), AllOf(Not(HasSubstr("incoming")), Not(HasSubstr("started"))));
  EXPECT_TRUE(absl::IsFailedPrecondition(MachineScript(manifestpb::Snapshot()).status()));
}

}  // namespace
}  // namespace still::snapshot
