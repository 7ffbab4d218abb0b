#include "session/hypervisor/qemu/qemu_probe.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/host_cpu.h"
#include "session/hypervisor/qemu/qemu_confinement.h"

namespace still::session {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class QemuProbeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-probe-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    InstallQemu("7.2.22");
    ASSERT_EQ(::setenv("STILL_QEMU", JoinPath(directory_, "qemu").c_str(), 1), 0);
  }
  void TearDown() override {
    ::unsetenv("STILL_QEMU");
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  // A program that answers as QEMU does, and counts how often it was asked.
  void InstallQemu(const std::string& version) {
    const std::string path = JoinPath(directory_, "qemu");
    ASSERT_TRUE(WriteFileAtomically(path, "#!/bin/sh\necho >>" + JoinPath(directory_, "asked") +
                                              "\ncase $1 in\n--version) echo 'QEMU emulator version " + version +
                                              " (Debian)' ;;\n-machine) echo 'Supported machines are:'; "
                                              "echo 'pc-q35-7.2           Standard PC' ;;\n"
                                              "-device) echo 'name \"virtio-rng-pci\", bus PCI' ;;\n"
                                              "-netdev) echo 'Available netdev backend types:'; echo user ;;\n"
                                              "-cpu) echo 'Available CPUs:'; echo 'x86 max  Enables all' ;;\n"
                                              "-L) echo '" +
                                              directory_ + "' ;;\nesac\n")
                    .ok());
    ASSERT_EQ(::chmod(path.c_str(), 0755), 0);
  }
  uint64_t TimesAsked() { return FileSize(JoinPath(directory_, "asked")).value_or(0); }
  absl::StatusOr<QemuFacts> Probe() { return ProbeQemu(JoinPath(directory_, "facts")); }

  std::string directory_;
};

TEST_F(QemuProbeTest, IsAskedAsTheUserThatItRunsAs) {
  const std::string path = JoinPath(directory_, "qemu");
  ASSERT_TRUE(WriteFileAtomically(path,
                                  "#!/bin/sh\ncase $1 in\n--version) echo QEMU emulator version 7.2 ;;\n"
                                  "-device) echo \"name \\\"$(id -u)\\\"\" ;;\nesac\n")
                  .ok());
  ASSERT_EQ(::chmod(path.c_str(), 0755), 0);
  ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);
  ASSERT_EQ(::setenv("STILL_VSOCK_LIBRARY", path.c_str(), 1), 0);  // It is looked at, and not loaded.
  const QemuUser chosen = ChooseQemuUser();
  const uid_t expected = chosen.user.has_value() ? chosen.user->uid : ::geteuid();
  if (::geteuid() == 0 && !chosen.user.has_value()) std::cout << "as root: " << chosen.reason << "\n";
  auto facts = Probe();
  ::unsetenv("STILL_VSOCK_LIBRARY");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_THAT(facts->devices, ElementsAre(absl::StrCat(expected)));
}

TEST_F(QemuProbeTest, AsksOnceAndAgainWhenTheProgramHasChanged) {
  auto facts = Probe();
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->version, "7.2.22");
  EXPECT_THAT(facts->machine_types, ElementsAre("pc-q35-7.2"));
  const uint64_t asked = TimesAsked();
  facts = Probe();
  EXPECT_EQ(TimesAsked(), asked);
  EXPECT_EQ(facts->version, "7.2.22");
  EXPECT_THAT(facts->machine_types, ElementsAre("pc-q35-7.2"));
  EXPECT_THAT(facts->devices, ElementsAre("virtio-rng-pci"));
  EXPECT_THAT(facts->networks, ElementsAre("user"));
  EXPECT_THAT(facts->cpu_models, ElementsAre("max"));
  EXPECT_THAT(facts->data_folders, ElementsAre(directory_));
  InstallQemu("8.2.0");
  EXPECT_EQ(Probe()->version, "8.2.0");
}

TEST_F(QemuProbeTest, ACacheThatIsDamagedIsAskedAnew) {
  ASSERT_TRUE(WriteFileAtomically(JoinPath(directory_, "facts"), "rubbish").ok());
  EXPECT_EQ(Probe()->version, "7.2.22");
}

TEST_F(QemuProbeTest, AProgramThatIsNotThereIsNamed) {
  ASSERT_EQ(::setenv("STILL_QEMU", "no-such-qemu", 1), 0);
  EXPECT_EQ(Probe().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Probe().status().message(), HasSubstr("no-such-qemu"));
}

TEST_F(QemuProbeTest, FirmwareIsLookedForWhereQemuDoes) {
  const QemuFacts facts{.data_folders = {"/nowhere", directory_}};
  absl::StatusOr<std::string> found = FindFirmware(facts, "qboot");
  EXPECT_EQ(found.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(found.status().message(), HasSubstr("qboot.rom"));
  for (const char* file : {"qboot.rom", "bios-256k.bin", "own.fd"}) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(directory_, file), "rom").ok());
  }
  EXPECT_EQ(FindFirmware(facts, "qboot").value(), JoinPath(directory_, "qboot.rom"));
  EXPECT_EQ(FindFirmware(facts, "seabios").value(), JoinPath(directory_, "bios-256k.bin"));
  EXPECT_EQ(FindFirmware({}, JoinPath(directory_, "own.fd")).value(), JoinPath(directory_, "own.fd"));
  EXPECT_EQ(FindFirmware(facts, "/nowhere/own.fd").status().code(), absl::StatusCode::kNotFound);
}

TEST(QemuAnswers, AreTakenApart) {
  EXPECT_EQ(ParseQemuVersion("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright").value(), "7.2.22");
  EXPECT_FALSE(ParseQemuVersion("bash: no").ok());
  EXPECT_FALSE(ParseQemuVersion("QEMU emulator version ").ok());
  EXPECT_THAT(ParseMachineTypes("Supported machines are:\nq35   alias of pc-q35-7.2\npc-q35-7.2  x\nnone empty\n"),
              ElementsAre("q35", "pc-q35-7.2", "none"));
  EXPECT_THAT(ParseDevices("Storage devices:\nname \"virtio-blk-pci\", bus PCI, alias \"virtio-blk\"\n\n"
                           "Misc devices:\nname \"vmgenid\"\n"),
              ElementsAre("virtio-blk-pci", "vmgenid"));
  EXPECT_THAT(ParseNetworks("Available netdev backend types:\nhubport\nuser\n"), ElementsAre("hubport", "user"));
  const char kFeatures[] = "\nRecognized CPUID flags:\n  3dnow abm\n";
  EXPECT_THAT(ParseCpuModels(absl::StrCat("Available CPUs:\nx86 486        (alias)\nx86 max  All\n", kFeatures)),
              ElementsAre("486", "max"));
  EXPECT_THAT(ParseCpuModels(absl::StrCat("Available CPUs:\n  486     (alias)\n  max  All\n", kFeatures)),
              ElementsAre("486", "max"));
}

TEST_F(QemuProbeTest, TheProcessorsFeaturesAreSorted) {
  ASSERT_TRUE(MakeDirectories(JoinPath(directory_, "proc")).ok());
  EXPECT_THAT(HostCpuFlags(directory_), IsEmpty());
  ASSERT_TRUE(WriteFileAtomically(JoinPath(directory_, "proc/cpuinfo"),
                                  "processor\t: 0\nflags\t\t: sse4_2 avx2 fpu\n\nprocessor\t: 1\nflags\t\t: fpu\n")
                  .ok());
  EXPECT_THAT(HostCpuFlags(directory_), ElementsAre("avx2", "fpu", "sse4_2"));
}

}  // namespace
}  // namespace still::session
