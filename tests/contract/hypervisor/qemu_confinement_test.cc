// A QEMU that root starts: who it is, what it can reach, and what works all the same. The contract suite runs as root with such
// a QEMU, so that whatever a Vm promises is promised of it.
#include "session/hypervisor/qemu/qemu_confinement.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "tests/contract/hypervisor/counting_guest.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/test_accelerator.h"

namespace still::testing {
namespace {

using ::testing::HasSubstr;

// `body` in a thread that has lost it for good, and whatever it starts too, as in a unit whose bounding set lacks it: Linux lets
// nobody look into a process that has more rights.
void WithoutCapability(int capability, const std::function<void()>& body) {
  std::thread([&] {
    ASSERT_EQ(::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), 0);
    __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct sets[2] = {};
    ASSERT_EQ(::syscall(SYS_capget, &header, sets), 0);
    for (__u32* set : {&sets[capability / 32].effective, &sets[capability / 32].permitted}) {
      *set &= ~(1U << capability % 32);
    }
    ASSERT_EQ(::syscall(SYS_capset, &header, sets), 0);
    body();
  }).join();
}

class QemuConfinementTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "QEMU is confined where root starts it";
    if (session::QemuUser chosen = session::ChooseQemuUser(); !chosen.user.has_value()) GTEST_SKIP() << chosen.reason;
    directory_ = JoinPath(::testing::TempDir(), "still-confined-XXXXXX");
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
    ASSERT_TRUE(MakeDirectories(JoinPath(directory_, "session")).ok());
    ASSERT_TRUE(MakeRawDisk(Base(), 1 << 20, CountingGuest()).ok());
    ASSERT_EQ(::chmod(Base().c_str(), 0600), 0);
  }
  void TearDown() override {
    if (directory_.empty()) return;
    EXPECT_TRUE(RemoveTree(directory_).ok());
  }

  std::string Base() const { return JoinPath(directory_, "base.raw"); }
  session::VmConfig Config() const {
    session::VmConfig config{.name = "confined",
                             .directory = JoinPath(directory_, "session"),
                             .accelerator = TestAccelerator(),
                             .memory_bytes = kGuestMemoryBytes};
    config.disks.push_back({.name = "vda", .path = Base(), .format = "raw"});
    return config;
  }
  static std::vector<std::string> Words(pid_t pid, const std::string& name) {
    const std::string status = ReadFile(absl::StrCat("/proc/", pid, "/status"), 1 << 16).value_or("");
    for (absl::string_view line : absl::StrSplit(status, '\n')) {
      std::vector<std::string> words = absl::StrSplit(line, absl::ByAnyChar("\t "), absl::SkipEmpty());
      if (!words.empty() && words[0] == absl::StrCat(name, ":")) return {words.begin() + 1, words.end()};
    }
    return {"missing"};
  }
  static bool Eventually(const std::function<bool()>& condition) {
    const absl::Time end = absl::Now() + absl::Minutes(2);
    while (!condition()) {
      if (absl::Now() > end) return false;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return true;
  }
  bool GetsOn(const session::VmConfig& config) const {
    const std::string log = JoinPath(config.directory, "console.log");
    const uint64_t before = FileSize(log).value_or(0);
    return Eventually([&] { return FileSize(log).value_or(0) > before + 3; });
  }

  std::string directory_;
};

TEST_F(QemuConfinementTest, ItIsAUserOfItsOwnWithoutRightsThatEndsWithWhoStartedIt) {
  std::unique_ptr<session::Vm> vm;
  pid_t pid = -1;
  {
    auto started = session::StartQemu(Config());
    ASSERT_TRUE(started.ok()) << started.status();
    vm = *std::move(started);
    pid = vm->description().pid;
  }
  const std::string user = Words(pid, "Uid")[0];
  EXPECT_EQ(Words(pid, "Uid"), std::vector<std::string>(4, user));
  EXPECT_EQ(Words(pid, "Gid"), std::vector<std::string>(4, user));
  EXPECT_EQ(user, absl::StrCat(session::ChooseQemuUser().user->uid));
  EXPECT_NE(user, "0");
  EXPECT_TRUE(Words(pid, "Groups").empty());
  for (const char* set : {"CapPrm", "CapEff", "CapAmb"}) {
    EXPECT_EQ(Words(pid, set), std::vector<std::string>{"0000000000000000"}) << set;
  }
  EXPECT_EQ(Words(pid, "NoNewPrivs"), std::vector<std::string>{"1"});
  EXPECT_EQ(Words(pid, "Seccomp"), std::vector<std::string>{"2"});
  EXPECT_TRUE(GetsOn(Config()));
}

TEST_F(QemuConfinementTest, ItHoldsNoFileThatItWasNotGiven) {
  auto vm = session::StartQemu(Config());
  ASSERT_TRUE(vm.ok()) << vm.status();
  const std::string descriptors = absl::StrCat("/proc/", (*vm)->description().pid, "/fd");
  auto names = ListDirectory(descriptors);
  ASSERT_TRUE(names.ok()) << names.status();
  int disks = 0;
  for (const std::string& name : *names) {
    char target[4096] = {};
    if (::readlink(JoinPath(descriptors, name).c_str(), target, sizeof target - 1) <= 0) continue;
    const std::string path(target);
    if (path == Base()) {
      ++disks;
    } else if (path.rfind("/", 0) == 0 && path != JoinPath(directory_, "session") &&
               path != "/memfd:still-ram (deleted)") {  // Nothing is in it: qemu_memory.h.
      struct stat info {};
      ASSERT_EQ(::stat(path.c_str(), &info), 0) << path;
      EXPECT_TRUE(S_ISCHR(info.st_mode) || (info.st_mode & S_IROTH) != 0) << path << " was not given to it";
    }
  }
  EXPECT_GE(disks, 1);
}

TEST_F(QemuConfinementTest, ImagesThatADiskLiesOverAreReadThroughRootsFolders) {
  const std::string middle = JoinPath(directory_, "middle.qcow2");
  const std::string top = JoinPath(directory_, "top.qcow2");
  for (std::vector<std::string> words : {std::vector<std::string>{"-b", "base.raw", "-F", "raw", middle},
                                         std::vector<std::string>{"-b", "middle.qcow2", "-F", "qcow2", top}}) {
    words.insert(words.begin(), {"qemu-img", "create", "-q", "-f", "qcow2"});
    auto made = RunCommand({.argv = std::move(words)}, absl::Seconds(60));
    ASSERT_TRUE(made.ok() && made->exit.ok()) << made->stderr_text;
  }
  session::VmConfig config = Config();
  config.disks[0] = {.name = "vda", .path = top, .format = "qcow2"};
  const std::string before = ReadFile(Base(), 1 << 20).value();
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_TRUE(GetsOn(config)) << "it boots from the image at the bottom";
  EXPECT_TRUE(ReadFile(Base(), 1 << 20).value() == before) << "and writes to the one on top";
  EXPECT_NE(Words((*vm)->description().pid, "Uid")[0], "0");
}

// What a hot image is: saved memory in a file of root's, which other machines start from, too.
TEST_F(QemuConfinementTest, SavedMemoryGoesOnAndStaysAsItIs) {
  session::VmConfig config = Config();
  const std::string image = JoinPath(directory_, "image.ram");
  std::string before;
  OwnedFd device_state;
  {
    auto vm = session::StartQemu(config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    ASSERT_TRUE(GetsOn(config));
    ASSERT_TRUE((*vm)->capabilities().engine_memory) << (*vm)->capabilities().engine_memory_reason;
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    MemoryReader reader(std::move(pair->second));
    auto capture = (*vm)->PrepareCapture({.memory = true}, std::move(pair->first));
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto paused = (*capture)->Pause();
    ASSERT_TRUE(paused.ok()) << paused.status();
    ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
    auto report = (*capture)->SaveStateAndResume(*std::move(paused));
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->memory_method, "engine") << report->memory_method_reason;
    EXPECT_TRUE(GetsOn(config)) << "while its memory is written";
    ASSERT_TRUE((*capture)->WaitForMemory(absl::Minutes(1)).ok());
    ASSERT_TRUE((*capture)->ExportDisks().ok());
    auto saved = reader.Finish();
    ASSERT_TRUE(saved.ok()) << saved;
    OwnedFd saved_ram = reader.TakeRam();
    before = ReadFile(absl::StrCat("/proc/self/fd/", saved_ram.get()), kGuestMemoryBytes).value();
    ASSERT_TRUE(WriteFileAtomically(image, before, 0600).ok());
    device_state = reader.TakeDeviceState();
    ASSERT_TRUE((*capture)->Release(true).ok());
  }
  auto ram = OpenFile(image, O_RDWR);
  ASSERT_TRUE(ram.ok());
  config.incoming = session::IncomingState{.ram = *std::move(ram), .device_state = std::move(device_state)};
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  ASSERT_TRUE((*vm)->Resume().ok());
  EXPECT_TRUE(GetsOn(config));
  EXPECT_TRUE(ReadFile(image, kGuestMemoryBytes).value() == before);
  // Not even an escaped guest could change it: none of QEMU's descriptors of it is for writing.
  const std::string process = absl::StrCat("/proc/", (*vm)->description().pid);
  int found = 0;
  const std::vector<std::string> names = ListDirectory(JoinPath(process, "fd")).value();
  for (const std::string& name : names) {
    char target[4096] = {};
    if (::readlink(JoinPath(JoinPath(process, "fd"), name).c_str(), target, sizeof target - 1) <= 0) continue;
    if (std::string(target) != image) continue;
    ++found;
    const std::string info = ReadFile(JoinPath(JoinPath(process, "fdinfo"), name), 4096).value();
    const std::string flags = info.substr(info.find("flags:"), 40);
    EXPECT_EQ(flags[flags.find('\n') - 1] - '0', O_RDONLY) << flags;
  }
  EXPECT_GE(found, 1);
}

TEST_F(QemuConfinementTest, RootKeepsItsOwnSocketsInTheSameDirectory) {
  session::VmConfig config = Config();
  const std::string control = JoinPath(config.directory, "control.sock");
  auto listening = ListenUnix(control);
  ASSERT_TRUE(listening.ok());
  auto vm = session::StartQemu(config);
  ASSERT_TRUE(vm.ok()) << vm.status();
  const session::QemuUser chosen = session::ChooseQemuUser();
  auto may = [&](const char* what, const std::string& path) {
    auto tried = RunCommand({.argv = {"test", what, path}, .working_directory = config.directory, .user = chosen.user},
                            absl::Seconds(20));
    return tried.ok() && tried->exit.ok();
  };
  EXPECT_TRUE(may("-e", "./control.sock")) << "it gets through the directory";
  EXPECT_FALSE(may("-w", "./control.sock"));
  EXPECT_FALSE(may("-r", "."));
  EXPECT_FALSE(may("-w", "."));
}

// Its descriptors are QEMU's alone: with one of ours the lock of a disk would outlive it.
TEST_F(QemuConfinementTest, ADiskIsFreeWhenItsQemuHasBeenKilled) {
  auto vm = session::StartQemu(Config());
  ASSERT_TRUE(vm.ok()) << vm.status();
  ASSERT_EQ(::kill((*vm)->description().pid, SIGKILL), 0);
  (*vm)->WaitForExit();
  auto next = session::StartQemu(Config());
  EXPECT_TRUE(next.ok()) << next.status();
}

// As in stilld's unit, where drills restore machines.
TEST_F(QemuConfinementTest, WithoutTheRightToLookIntoItOnlyAMachineWithANetworkIsRoots) {
  WithoutCapability(CAP_SYS_PTRACE, [&] {
    session::VmConfig config = Config();
    {
      auto vm = session::StartQemu(config);
      ASSERT_TRUE(vm.ok()) << vm.status();
      EXPECT_NE(Words((*vm)->description().pid, "Uid")[0], "0");
      EXPECT_TRUE(GetsOn(config));
    }
    config.nics.push_back({.name = "net0", .mac = "52:54:00:12:34:56", .kind = "user"});
    auto vm = session::StartQemu(config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    EXPECT_EQ(Words((*vm)->description().pid, "Uid")[0], "0");
  });
}

TEST_F(QemuConfinementTest, WhatCannotBeGivenIsSaidAndQemuRunsAsBefore) {
  ASSERT_EQ(::setenv("STILL_QEMU_AS_ROOT", "1", 1), 0);
  const session::QemuUser chosen = session::ChooseQemuUser();
  auto vm = session::StartQemu(Config());
  ::unsetenv("STILL_QEMU_AS_ROOT");
  EXPECT_FALSE(chosen.user.has_value());
  EXPECT_THAT(chosen.reason, HasSubstr("STILL_QEMU_AS_ROOT"));
  ASSERT_TRUE(vm.ok()) << vm.status();
  EXPECT_EQ(Words((*vm)->description().pid, "Uid")[0], "0");
}

}  // namespace
}  // namespace still::testing
