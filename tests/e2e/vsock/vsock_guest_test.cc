// The user-space vsock device before a real guest: Linux's own driver, in QEMU with the preloaded library, through a
// background snapshot under traffic and into restored copies. STILL_VSOCK_GUEST: the directory of the guest's image.
// With STILL_EXPECT_BACKGROUND the snapshot must be taken while the guest runs. With STILL_VSOCK_BACKEND=kernel the
// source is on the kernel's device instead, and so is a copy that is restored when the source is gone (nested_run).
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "session/hypervisor/qemu/qemu_vm.h"
#include "session/vsock/vsock_host.h"
#include "tests/contract/hypervisor/snapshot_files.h"
#include "tests/support/test_accelerator.h"

namespace still::session {
namespace {

// For a guest under emulation on a busy machine, which may itself be emulated.
const absl::Duration kPatience = absl::Minutes(std::getenv("STILL_VSOCK_BACKEND") != nullptr ? 20 : 2);
constexpr uint32_t kEcho = 5000;
constexpr uint32_t kSayCid = 5001;
constexpr uint32_t kSendZeros = 5002;
constexpr uint32_t kCount = 5003;

bool Write(int fd, absl::string_view data) { return WriteAll(fd, data.data(), data.size(), "guest").ok(); }

// Up to `size` bytes; fewer at the end of the stream or when nothing comes.
std::string Read(int fd, size_t size) {
  std::string data(std::min<size_t>(size, 1 << 20), '\0');
  size_t have = 0;
  while (have < size) {
    if (!WaitReadable(fd, kPatience, "guest").ok()) break;
    if (have == data.size()) data.resize(std::min(size, 2 * have));
    ssize_t got = ::recv(fd, &data[have], data.size() - have, 0);
    if (got <= 0) break;
    have += static_cast<size_t>(got);
  }
  data.resize(have);
  return data;
}
std::string ReadToEnd(int fd) { return Read(fd, SIZE_MAX); }

std::string RandomText(size_t size, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::string text(size, '\0');
  for (size_t i = 0; i + 8 <= size; i += 8) {
    uint64_t word = random();
    std::memcpy(&text[i], &word, 8);
  }
  return text;
}

// A VM with its vsock.
struct Machine {
  std::string directory;
  std::unique_ptr<VsockHost> vsock;
  std::unique_ptr<Vm> vm;

  OwnedFd Connect(uint32_t port) {
    auto fd = vsock->Connect(port, kPatience);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return fd.ok() ? *std::move(fd) : OwnedFd();
  }
  // The guest's own connection.
  OwnedFd Accept() {
    auto fd = vsock->Accept(kPatience);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return fd.ok() ? *std::move(fd) : OwnedFd();
  }
  std::string GuestCid() { return ReadToEnd(Connect(kSayCid).get()); }
};

bool Echoes(int fd, const std::string& data) {
  std::thread writer([&] { Write(fd, data); });
  std::string back = Read(fd, data.size());
  writer.join();
  return back == data;
}

// Keeps echoing until told to stop; every byte is checked.
class Traffic {
 public:
  Traffic(OwnedFd fd, uint32_t seed) : fd_(std::move(fd)), data_(RandomText(40'000, seed)) {
    thread_ = std::thread([this] {
      while (!stop_.load() && good_.load()) {
        good_.store(Echoes(fd_.get(), data_));
        rounds_.fetch_add(1);
      }
    });
  }
  ~Traffic() {
    stop_.store(true);
    thread_.join();
  }
  bool good() const { return good_.load(); }
  int rounds() const { return rounds_.load(); }
  // True when more rounds are made than at the time of the call.
  bool GoesOn() {
    int before = rounds();
    absl::Duration deadline = Clock::Real().Monotonic() + kPatience;
    while (rounds() < before + 2 && good() && Clock::Real().Monotonic() < deadline) {
      Clock::Real().Sleep(absl::Milliseconds(5));
    }
    return rounds() >= before + 2 && good();
  }

 private:
  OwnedFd fd_;
  const std::string data_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> good_{true};
  std::atomic<int> rounds_{0};
  std::thread thread_;
};

class VsockGuestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-vsock-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    const char* image = std::getenv("STILL_VSOCK_GUEST");
    ASSERT_NE(image, nullptr) << "run by ctest, which has the image made first";
    image_ = image;
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }

  static VsockBackend SourceBackend() {
    const char* chosen = std::getenv("STILL_VSOCK_BACKEND");
    return chosen != nullptr && std::string(chosen) == "kernel" ? VsockBackend::kKernel : VsockBackend::kUserspace;
  }

  // `port` 0: any.
  void Start(Machine* machine, const std::string& name, VsockBackend backend, uint32_t port,
             std::optional<IncomingState> incoming) {
    machine->directory = JoinPath(root_, name);
    ASSERT_TRUE(MakeDirectories(machine->directory).ok());
    auto vsock = VsockHost::Create({.directory = machine->directory, .port = port, .backend = backend});
    ASSERT_TRUE(vsock.ok()) << vsock.status();
    machine->vsock = *std::move(vsock);
    auto cmdline = ReadFile(JoinPath(image_, "cmdline"), 1 << 16);
    ASSERT_TRUE(cmdline.ok()) << cmdline.status();
    VmConfig config{.name = name,
                    .directory = machine->directory,
                    .accelerator = still::testing::TestAccelerator(),
                    .memory_bytes = 256 << 20,
                    .kernel = JoinPath(image_, "vmlinux"),
                    .initrd = JoinPath(image_, "initrd"),
                    .cmdline = absl::StrCat(*cmdline, " still.port=", machine->vsock->port())};
    config.vsock = machine->vsock->attachment();
    config.incoming = std::move(incoming);
    auto vm = StartQemu(config);
    ASSERT_TRUE(vm.ok()) << vm.status();
    machine->vm = *std::move(vm);
  }

  void Restore(Machine* machine, const std::string& name, uint32_t port, const OwnedFd& ram, const OwnedFd& devices) {
    ASSERT_EQ(::lseek(devices.get(), 0, SEEK_SET), 0);
    VsockBackend backend =
        SourceBackend() == VsockBackend::kKernel ? VsockBackend::kAutomatic : VsockBackend::kUserspace;
    ASSERT_NO_FATAL_FAILURE(Start(machine, name, backend, port,
                                  IncomingState{.ram = *ram.Duplicate(), .device_state = *devices.Duplicate()}));
    ASSERT_TRUE(machine->vm->Resume().ok());
  }

  std::string root_;
  std::string image_;
};

// At once after a restore: the guest may still believe in its old CID. The user-space device hides that; with the
// kernel's a first connection can fail.
void ACopyTalks(Machine& copy) {
  bool may_fail = copy.vsock->backend() == "kernel";
  for (int attempt = 0; may_fail && attempt < 100; ++attempt) {
    auto fd = copy.vsock->Connect(kSayCid, kPatience);
    may_fail = !fd.ok() || ReadToEnd(fd->get()) != absl::StrCat(copy.vsock->guest_cid(), "\n");
  }
  EXPECT_EQ(copy.GuestCid(), absl::StrCat(copy.vsock->guest_cid(), "\n"));
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(Echoes(copy.Connect(kEcho).get(), "hello"));
  EXPECT_TRUE(Echoes(copy.Accept().get(), RandomText(1 << 20, 4))) << "the guest noticed and dialled anew";
  copy.vm->Kill();
  copy.vm->WaitForExit();
}

void BytesGoBothWays(Machine& machine) {
  OwnedFd dialled = machine.Accept();
  EXPECT_TRUE(Echoes(dialled.get(), RandomText(1 << 20, 1))) << "over the guest's own connection";

  OwnedFd echo = machine.Connect(kEcho);
  EXPECT_TRUE(Echoes(echo.get(), RandomText(8 << 20, 2)));
  OwnedFd count = machine.Connect(kCount);
  EXPECT_TRUE(Write(count.get(), std::string(16 << 20, 'x')));
  ASSERT_EQ(::shutdown(count.get(), SHUT_WR), 0);
  EXPECT_EQ(ReadToEnd(count.get()), absl::StrCat(16 << 20, "\n")) << "a half-close keeps the other half";

  EXPECT_EQ(machine.vsock->Connect(9999, kPatience).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(machine.GuestCid(), absl::StrCat(machine.vsock->guest_cid(), "\n"));

  dialled.Reset();
  EXPECT_TRUE(Echoes(machine.Accept().get(), "again")) << "the guest saw the close and dials anew";
}

void ASlowReaderHoldsUpNobody(Machine& machine) {
  constexpr size_t kBytes = 32 << 20;
  OwnedFd slow = machine.Connect(kSendZeros);
  EXPECT_TRUE(Write(slow.get(), absl::StrCat(kBytes, "\n")));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(machine.GuestCid(), absl::StrCat(machine.vsock->guest_cid(), "\n"));
  std::string zeros = ReadToEnd(slow.get());
  EXPECT_EQ(zeros.size(), kBytes);
  EXPECT_EQ(std::count(zeros.begin(), zeros.end(), '\0'), static_cast<long>(kBytes));
}

void ManyAtOnce(Machine& machine) {
  constexpr int kConnections = 100;
  std::string data = RandomText(20'000, 3);
  std::vector<OwnedFd> fds;
  for (int i = 0; i < kConnections; ++i) fds.push_back(machine.Connect(kEcho));
  for (const OwnedFd& fd : fds) EXPECT_TRUE(Write(fd.get(), data));
  for (const OwnedFd& fd : fds) EXPECT_TRUE(Read(fd.get(), data.size()) == data);
}

TEST_F(VsockGuestTest, TalksIsSnapshottedUnderTrafficAndTalksAgainWhereItIsRestored) {
  Machine source;
  ASSERT_NO_FATAL_FAILURE(Start(&source, "source", SourceBackend(), /*port=*/0, std::nullopt));
  BytesGoBothWays(source);
  ASlowReaderHoldsUpNobody(source);
  ManyAtOnce(source);

  Traffic first(source.Connect(kEcho), 11);
  Traffic second(source.Connect(kEcho), 12);
  ASSERT_TRUE(first.GoesOn() && second.GoesOn());
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  testing::MemoryReader reader(std::move(pair->second));
  auto capture = source.vm->PrepareCapture({}, std::move(pair->first));
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto paused = (*capture)->Pause();
  ASSERT_TRUE(paused.ok()) << paused.status();
  ASSERT_TRUE((*capture)->PinDisks(*paused).ok());
  auto report = (*capture)->SaveStateAndResume(*std::move(paused));
  ASSERT_TRUE(report.ok()) << report.status();
  if (std::getenv("STILL_EXPECT_BACKGROUND") != nullptr) {
    EXPECT_EQ(report->memory_method, "engine") << source.vm->capabilities().engine_memory_reason;
  }
  EXPECT_TRUE(first.GoesOn() && second.GoesOn()) << "while the snapshot is being written";
  ASSERT_TRUE((*capture)->WaitForMemory(kPatience).ok());
  ASSERT_TRUE(reader.Finish().ok());
  EXPECT_TRUE((*capture)->Release(false).ok());
  EXPECT_TRUE(first.GoesOn() && second.GoesOn());

  OwnedFd ram = reader.TakeRam();
  OwnedFd devices = reader.TakeDeviceState();
  for (const char* name : {"copy1", "copy2"}) {
    SCOPED_TRACE(name);
    Machine copy;
    // The port is the one that the guest knows, and the source still has it.
    ASSERT_NO_FATAL_FAILURE(Restore(&copy, name, source.vsock->port(), ram, devices));
    EXPECT_EQ(copy.vsock->backend(), "userspace");
    ASSERT_NE(copy.vsock->guest_cid(), source.vsock->guest_cid());
    ACopyTalks(copy);
  }
  EXPECT_TRUE(first.GoesOn() && second.GoesOn()) << "the source never noticed";

  uint32_t port = source.vsock->port();
  source.vm->Kill();
  source.vm->WaitForExit();
  source.vsock.reset();
  Machine successor;
  ASSERT_NO_FATAL_FAILURE(Restore(&successor, "successor", port, ram, devices));
  EXPECT_EQ(successor.vsock->backend(), SourceBackend() == VsockBackend::kKernel ? "kernel" : "userspace");
  ACopyTalks(successor);
}

}  // namespace
}  // namespace still::session
