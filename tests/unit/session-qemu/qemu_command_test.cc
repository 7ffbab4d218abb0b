#include "session/hypervisor/qemu/qemu_command.h"

#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace still::session {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

VmConfig KernelVm() {
  VmConfig config{.name = "web, one", .directory = "/run/x", .accelerator = "tcg", .memory_bytes = 512u << 20};
  config.kernel = "/boot/vmlinux";
  config.initrd = "/boot/initrd";
  config.cmdline = "console=ttyS0 quiet";
  config.disks.push_back({.name = "vda", .path = "/d/a,b.qcow2", .format = "qcow2", .serial = "root"});
  config.disks.push_back({.name = "vdb", .path = "/d/b.raw", .format = "raw", .read_only = true});
  config.generation_id = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";
  return config;
}

std::vector<std::string> Command(const VmConfig& config) {
  return QemuCommand("qemu", config, {.qmp = 7, .console = 8});
}

// The value after `flag`; the `n`th of them.
std::string Value(const std::vector<std::string>& argv, const std::string& flag, size_t n = 0) {
  for (size_t i = 0; i + 1 < argv.size(); ++i) {
    if (argv[i] == flag && n-- == 0) return argv[i + 1];
  }
  return "";
}

TEST(QemuCommand, AKernelBootsThroughQboot) {
  auto argv = Command(KernelVm());
  EXPECT_EQ(Value(argv, "-bios"), "qboot.rom");
  EXPECT_EQ(Value(argv, "-kernel"), "/boot/vmlinux");
  EXPECT_EQ(Value(argv, "-append"), "console=ttyS0 quiet");
  EXPECT_EQ(Value(argv, "-machine"), "pc-q35-7.2");
  EXPECT_EQ(Value(argv, "-cpu"), "max");
  EXPECT_EQ(Value(argv, "-m"), "512M");
  EXPECT_EQ(Value(argv, "-name"), "guest=web,, one,debug-threads=on");
  EXPECT_THAT(argv, Contains("-no-user-config"));
  EXPECT_THAT(argv, Contains("-nodefaults"));
  EXPECT_THAT(argv, Not(Contains("-S")));
}

TEST(QemuCommand, ADiskBootsThroughSeaBios) {
  VmConfig config = KernelVm();
  config.kernel = config.initrd = config.cmdline = "";
  EXPECT_THAT(Command(config), Not(Contains("-bios")));
  EXPECT_EQ(FirmwareOf(config), "seabios");
  EXPECT_THAT(absl::StrJoin(Command(config), " "),
              HasSubstr("drive=disk0,bus=pcie.0,addr=0x8,serial=root,bootindex=0"));
}

TEST(QemuCommand, DisksAreNamedByPositionAndNeverProbed) {
  auto argv = Command(KernelVm());
  EXPECT_THAT(Value(argv, "-blockdev", 0), HasSubstr(R"("filename":"/d/a,b.qcow2")"));
  EXPECT_THAT(Value(argv, "-blockdev", 0), HasSubstr(R"("locking":"on")"));
  EXPECT_THAT(Value(argv, "-blockdev", 1), HasSubstr(R"("driver":"qcow2")"));
  EXPECT_THAT(Value(argv, "-blockdev", 1), HasSubstr(R"("node-name":"disk0")"));
  EXPECT_THAT(Value(argv, "-blockdev", 3), HasSubstr(R"("driver":"raw")"));
  EXPECT_THAT(Value(argv, "-blockdev", 3), HasSubstr(R"("read-only":true)"));
}

TEST(QemuCommand, FilesHaveTheNamesThatQemuCanOpenAndItsDisksWhatTheyLieOver) {
  QemuDescriptors descriptors{.qmp = 7,
                              .console = 8,
                              .names = {{"/boot/vmlinux", "/proc/self/fd/20"},
                                        {"/boot/initrd", "/proc/self/fd/21"},
                                        {"/d/a,b.qcow2", "/proc/self/fd/22"},
                                        {"/d/middle", "/proc/self/fd/23"},
                                        {"/d/base", "/proc/self/fd/24"}}};
  descriptors.backing = {{{.path = "/d/middle", .format = "qcow2"}, {.path = "/d/base", .format = "raw"}}, {}};
  auto argv = QemuCommand("qemu", KernelVm(), descriptors);
  EXPECT_EQ(Value(argv, "-kernel"), "/proc/self/fd/20");
  EXPECT_EQ(Value(argv, "-initrd"), "/proc/self/fd/21");
  EXPECT_THAT(Value(argv, "-blockdev", 0), HasSubstr(R"("filename":"/proc/self/fd/22")"));
  auto disk = nlohmann::json::parse(Value(argv, "-blockdev", 1));
  EXPECT_EQ(disk["backing"]["driver"], "qcow2");
  EXPECT_EQ(disk["backing"]["file"]["filename"], "/proc/self/fd/23");
  EXPECT_EQ(disk["backing"]["read-only"], true);
  EXPECT_EQ(disk["backing"]["backing"]["driver"], "raw");
  EXPECT_EQ(disk["backing"]["backing"]["file"]["filename"], "/proc/self/fd/24");
  EXPECT_FALSE(disk["backing"]["backing"].contains("backing"));
  EXPECT_THAT(Value(argv, "-blockdev", 2), HasSubstr(R"("filename":"/d/b.raw")"));
  EXPECT_THAT(Value(argv, "-blockdev", 3), Not(HasSubstr("backing")));
}

TEST(QemuCommand, AGenerationIdIsThereWhereTheFirmwareSurvivesIt) {
  constexpr char kDevice[] = "vmgenid,id=generation,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87";
  VmConfig config = KernelVm();
  EXPECT_THAT(Command(config), Not(Contains(kDevice)));
  config.firmware = "seabios";
  EXPECT_THAT(Command(config), Contains(kDevice));
  // A saved machine is started with what it had.
  config.incoming.emplace();
  EXPECT_THAT(Command(config), Not(Contains(kDevice)));
  config.incoming->generation_id = true;
  EXPECT_THAT(Command(config), Contains(kDevice));
}

TEST(QemuCommand, SavedMemoryIsGivenItsKernelForTheNextBootAndNoResetEndsIt) {
  VmConfig config = KernelVm();
  config.incoming.emplace();
  EXPECT_THAT(Command(config), Contains("-kernel"));
  EXPECT_THAT(Command(config), Not(Contains("-no-reboot")));
  EXPECT_EQ(Value(Command(config), "-bios"), "qboot.rom");
}

TEST(QemuCommand, AnotherCardMovesNoDisk) {
  VmConfig config = KernelVm();
  std::string before = absl::StrJoin(Command(config), " ");
  config.nics.push_back({.name = "net0", .mac = "52:54:00:12:34:56", .kind = "user"});
  std::string after = absl::StrJoin(Command(config), " ");
  for (const char* place : {"drive=disk0,bus=pcie.0,addr=0x8", "drive=disk1,bus=pcie.0,addr=0x9"}) {
    EXPECT_THAT(before, HasSubstr(place));
    EXPECT_THAT(after, HasSubstr(place));
  }
  EXPECT_THAT(after, HasSubstr("virtio-net-pci,id=nic0-dev,netdev=net0,romfile=,bus=pcie.0,addr=0x4,mac=52:54"));
}

TEST(QemuCommand, DevicesAreToldWithTheirPlaces) {
  VmConfig config = KernelVm();
  config.disks[1].serial = "a,addr=0x1f";
  config.vsock.emplace();
  config.nics.push_back({.name = "net0", .kind = "user"});
  EXPECT_THAT(DevicesOf(config), ElementsAre("virtio-rng-pci@0x2", "vhost-vsock-pci@0x3", "virtio-net-pci@0x4",
                                             "virtio-blk-pci@0x8", "virtio-blk-pci@0x9"));
  config.kernel = "";
  EXPECT_THAT(DevicesOf(config), Contains("vmgenid"));
}

TEST(QemuCommand, APortToTheQemuGuestAgentIsThereWhereItIsAskedFor) {
  VmConfig config = KernelVm();
  const std::string without = absl::StrJoin(Command(config), " ");
  EXPECT_THAT(without, Not(HasSubstr("virtserialport")));
  EXPECT_FALSE(HasQgaPort(DevicesOf(config)));
  config.qga_fd = 9;
  const std::string with = absl::StrJoin(Command(config), " ");
  EXPECT_THAT(with, HasSubstr("socket,id=qga,fd=9"));
  EXPECT_THAT(with, HasSubstr("chardev=qga,name=org.qemu.guest_agent.0"));
  EXPECT_TRUE(HasQgaPort(DevicesOf(config)));
  EXPECT_THAT(DevicesOf(config), Contains("virtio-serial-pci@0x1"));
  EXPECT_THAT(DevicesOf(config), Contains("virtio-blk-pci@0x8"));
}

TEST(QemuCommand, AnIsolatedCardHasTheBackEndOfAnUnrestrictedOneAndReachesNothing) {
  VmConfig config = KernelVm();
  config.nics.push_back({.name = "net0", .kind = "user"});
  EXPECT_EQ(Value(Command(config), "-netdev"), "user,id=net0");
  config.nics[0].kind = "isolated";
  EXPECT_EQ(Value(Command(config), "-netdev"), "user,id=net0,restrict=on");
  EXPECT_TRUE(CheckVmConfig(config).ok());
}

TEST(QemuCommand, ALinkThatIsDownHoldsTheVmUntilItIs) {
  VmConfig config = KernelVm();
  config.nics.push_back({.name = "net0", .kind = "none", .link_up = false});
  EXPECT_THAT(Command(config), Contains("-S"));
  EXPECT_EQ(Value(Command(config), "-netdev"), "hubport,id=net0,hubid=0");
}

TEST(QemuCommand, SavedMemoryIsMappedUnderTheNameThatStreamsKnow) {
  VmConfig config = KernelVm();
  config.incoming = IncomingState{.ram = OwnedFd(), .device_state = OwnedFd(), .share_ram = false};
  auto argv = Command(config);
  EXPECT_EQ(Value(argv, "-object"),
            "memory-backend-file,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,align=2M,size=512M,share=off,"
            "mem-path=/proc/self/fd/-1");
  EXPECT_EQ(Value(argv, "-machine"), "pc-q35-7.2,memory-backend=pc.ram");
  EXPECT_EQ(Value(argv, "-incoming"), "defer");
  EXPECT_THAT(argv, Contains("-S"));
}

// What the library maps privately is shared to QEMU, so that its migration can leave it out (qemu_memory.h).
TEST(QemuCommand, MemoryThatIsHandedOverIsSharedAlsoOfANewMachine) {
  for (bool saved : {false, true}) {
    VmConfig config = KernelVm();
    if (saved) config.incoming = IncomingState{.ram = OwnedFd(), .device_state = OwnedFd(), .share_ram = false};
    auto argv = QemuCommand("qemu", config, {.ram = 17, .ram_is_handed_over = true});
    EXPECT_EQ(Value(argv, "-object"),
              "memory-backend-file,id=pc.ram,x-use-canonical-path-for-ramblock-id=off,align=2M,size=512M,share=on,"
              "mem-path=/proc/self/fd/17");
    EXPECT_EQ(Value(argv, "-machine"), "pc-q35-7.2,memory-backend=pc.ram");
  }
}

TEST(QemuCommand, VsockHidesWhatOnlyOneBackEndHas) {
  VmConfig config = KernelVm();
  config.vsock = VsockAttachment{.guest_cid = 42, .vhost_fd = 9};
  EXPECT_THAT(absl::StrJoin(Command(config), " "),
              HasSubstr("vhost-vsock-pci,id=vsock,guest-cid=42,seqpacket=off,bus=pcie.0,addr=0x3,vhostfd=9"));
}

TEST(CheckVmConfig, SaysWhatIsWrong) {
  struct Case {
    std::function<void(VmConfig&)> spoil;
    const char* text;
  };
  const Case cases[] = {
      {[](VmConfig& c) { c.accelerator = "hvf"; }, "accelerator \"hvf\""},
      {[](VmConfig& c) { c.memory_bytes = (512u << 20) + 4096; }, "multiple of 2 MiB"},
      {[](VmConfig& c) { c.memory_bytes = 0; }, "multiple of 2 MiB"},
      {[](VmConfig& c) { c.vcpus = 0; }, "0 vcpus"},
      {[](VmConfig& c) { c.kernel = ""; }, "without a kernel"},
      {[](VmConfig& c) {
         c.kernel = c.initrd = c.cmdline = "";
         c.disks.clear();
       },
       "nothing to boot"},
      {[](VmConfig& c) { c.disks[0].name = "vd/a"; }, "disk name \"vd/a\""},
      {[](VmConfig& c) { c.disks[1].name = "vda"; }, "given twice"},
      {[](VmConfig& c) { c.disks[0].format = "vmdk"; }, "use raw or qcow2"},
      {[](VmConfig& c) { c.disks[0].path = ""; }, "has no path"},
      {[](VmConfig& c) { c.disks[0].serial = std::string(21, 's'); }, "at most 20 characters"},
      {[](VmConfig& c) { c.disks.assign(kMaxDisks + 1, c.disks[0]); }, "at most 16"},
      {[](VmConfig& c) { c.nics.assign(1, {.name = "0net", .kind = "user"}); }, "a letter first"},
      {[](VmConfig& c) { c.nics.assign(1, {.name = "net0", .mac = "zz", .kind = "user"}); }, "not a MAC address"},
      {[](VmConfig& c) { c.nics.assign(1, {.name = "net0", .kind = "tap"}); }, "kind \"tap\""},
      {[](VmConfig& c) { c.nics.assign(kMaxNics + 1, {.name = "net0", .kind = "none"}); }, "at most 4"},
      {[](VmConfig& c) { c.incoming.emplace(); }, "without a memory image"},
  };
  EXPECT_TRUE(CheckVmConfig(KernelVm()).ok());
  for (const Case& one : cases) {
    VmConfig config = KernelVm();
    one.spoil(config);
    absl::Status status = CheckVmConfig(config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(one.text));
  }
}

}  // namespace
}  // namespace still::session
