// The device as a hypervisor drives it: ioctls, eventfds, its thread, and UNIX sockets on the host.
#include "session/vsock/device/vhost_vsock.h"

#include <dirent.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <fstream>
#include <random>
#include <thread>

#include "tests/unit/session-vsock/device_thread_fixture.h"

namespace still::vsock {
namespace {

class VhostVsockTest : public DeviceThreadFixture {};

TEST_F(VhostVsockTest, TheHostConnectsToAPortInTheGuest) {
  Build();
  machine->Start();
  OwnedFd fd = HostAsks("CONNECT 5000\nsent at once");
  Packet request = machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
  EXPECT_EQ(request.header.dst_port, 5000u);
  machine->Send(VIRTIO_VSOCK_OP_RESPONSE, 5000, request.header.src_port);
  EXPECT_EQ(ReadLine(fd.get()), "OK " + std::to_string(request.header.src_port) + "\n");
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "sent at once");
  machine->Send(VIRTIO_VSOCK_OP_RW, 5000, request.header.src_port, "answer");
  EXPECT_EQ(ReadSome(fd.get(), 6), "answer");
}

TEST_F(VhostVsockTest, TheGuestConnectsToAPortOnTheHost) {
  OwnedFd listening = *ListenUnix(JoinPath(directory, "vsock.sock_1024"));
  Build();
  machine->Start();
  machine->Send(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, kHostPort);
  machine->Expect(VIRTIO_VSOCK_OP_RESPONSE);
  OwnedFd fd = *AcceptWithin(listening.get(), absl::Milliseconds(kPatienceMs), "guest");
  machine->Send(VIRTIO_VSOCK_OP_RW, kGuestPort, kHostPort, "hello");
  EXPECT_EQ(ReadSome(fd.get(), 5), "hello");
  ASSERT_TRUE(WriteText(fd.get(), "welcome"));
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "welcome");
}

TEST_F(VhostVsockTest, APortWithoutAListenerOrWithoutRoomIsReset) {
  OwnedFd full = *ListenUnix(JoinPath(directory, "vsock.sock_7"), /*backlog=*/0);
  OwnedFd first = *ConnectUnix(JoinPath(directory, "vsock.sock_7"));  // A backlog of 0 holds one.
  Build();
  machine->Start();
  machine->Send(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, 6);
  machine->Expect(VIRTIO_VSOCK_OP_RST);
  machine->Send(VIRTIO_VSOCK_OP_REQUEST, kGuestPort, 7);
  machine->Expect(VIRTIO_VSOCK_OP_RST);
}

TEST_F(VhostVsockTest, APortThatTheGuestRefusesIsTheEndWithoutAnAnswer) {
  Build();
  machine->Start();
  OwnedFd fd = HostAsks();
  Packet request = machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
  machine->Send(VIRTIO_VSOCK_OP_RST, kGuestPort, request.header.src_port);
  EXPECT_EQ(ReadToEnd(fd.get()), "");
}

TEST_F(VhostVsockTest, WhatIsNoHandshakeIsClosed) {
  Build();
  machine->Start();
  for (const char* line : {"HELLO 5000\n", "CONNECT\n", "CONNECT \n", "CONNECT x\n", "CONNECT 50 00\n", "CONNECT -1\n",
                           "CONNECT 4294967295\n", "CONNECT 99999999999999999999\n", "connect 5000\n", "\n",
                           "CONNECT 000000000000000000000000000005000"}) {
    OwnedFd fd = HostAsks(line);
    EXPECT_EQ(ReadToEnd(fd.get()), "") << line;
  }
  OwnedFd good = HostAsks("CONNECT 4294967294\n");
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_REQUEST).header.dst_port, 4294967294u) << "the others asked for nothing";
}

TEST_F(VhostVsockTest, AHandshakeMayComeInPieces) {
  Build();
  machine->Start();
  OwnedFd fd = HostConnects();
  for (const char* piece : {"CON", "NECT 50", "00"}) {
    ASSERT_TRUE(WriteText(fd.get(), piece));
    EXPECT_FALSE(machine->Receive(/*patience_ms=*/20).has_value());
  }
  ASSERT_TRUE(WriteText(fd.get(), "\nx"));
  Packet request = machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
  machine->Send(VIRTIO_VSOCK_OP_RESPONSE, 5000, request.header.src_port);
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "x");
}

TEST_F(VhostVsockTest, SilentClientsTakeAllTheirPlacesAndNoMore) {
  Build();
  machine->Start();
  std::vector<OwnedFd> silent;
  for (size_t i = 0; i < UnixBridge::kMaxHandshakes; ++i) silent.push_back(HostConnects());
  OwnedFd refused = HostConnects();
  EXPECT_EQ(ReadToEnd(refused.get()), "");
  silent.pop_back();
  // Its place is free as soon as the device has seen the end of it.
  for (int attempt = 0; attempt < 1000; ++attempt) {
    OwnedFd fd = HostConnects();
    if (!WriteText(fd.get(), "CONNECT 5000\n")) continue;
    if (machine->Receive(/*patience_ms=*/20).has_value()) return;
  }
  FAIL() << "the place stays taken";
}

TEST_F(VhostVsockTest, HalfClosesAreKeptAndClosesEndBothWays) {
  Build();
  machine->Start();
  uint32_t port = 0;
  OwnedFd fd = Connected(&port);
  ASSERT_TRUE(WriteText(fd.get(), "question"));
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "question");
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_SHUTDOWN).header.flags, uint32_t{VIRTIO_VSOCK_SHUTDOWN_SEND});
  machine->Send(VIRTIO_VSOCK_OP_RW, kGuestPort, port, "answer");
  machine->Send(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, port, "", 3);
  EXPECT_EQ(ReadToEnd(fd.get()), "answer");
  machine->Expect(VIRTIO_VSOCK_OP_RST);

  fd = Connected(&port);
  ASSERT_TRUE(WriteText(fd.get(), "bye"));
  fd.Reset();
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "bye");
  Packet shutdown = machine->Expect(VIRTIO_VSOCK_OP_SHUTDOWN);
  while (shutdown.header.flags != 3u) shutdown = machine->Expect(VIRTIO_VSOCK_OP_SHUTDOWN);
  machine->Send(VIRTIO_VSOCK_OP_RST, kGuestPort, port);

  fd = Connected(&port);
  machine->Send(VIRTIO_VSOCK_OP_SHUTDOWN, kGuestPort, port, "", VIRTIO_VSOCK_SHUTDOWN_SEND);
  EXPECT_EQ(ReadToEnd(fd.get()), "");
  ASSERT_TRUE(WriteText(fd.get(), "still heard"));
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "still heard");
  machine->Send(VIRTIO_VSOCK_OP_RST, kGuestPort, port);
}

// Two streams echoed by the driver at once, over small rings and a host that reads slowly.
void EchoMuch(Machine* machine, int fd, uint32_t guest_port, uint32_t host_port) {
  constexpr size_t kBytes = 3 << 20;
  std::mt19937 random(99);
  std::string data(kBytes, '\0');
  for (char& byte : data) byte = static_cast<char>(random());
  std::string got;
  std::thread writer([&] {
    for (size_t at = 0; at < kBytes;) {
      ssize_t sent = ::send(fd, data.data() + at, std::min<size_t>(kBytes - at, 50'000), MSG_NOSIGNAL);
      ASSERT_GT(sent, 0);
      at += static_cast<size_t>(sent);
    }
    ::shutdown(fd, SHUT_WR);
  });
  std::thread reader([&] { got = ReadToEnd(fd); });
  uint32_t sent = 0;
  uint32_t forwarded = 0;
  std::string waiting;
  bool ended = false;
  uint32_t window = 0;
  while (!ended || !waiting.empty()) {
    // Only what the device lets us send.
    auto room = static_cast<uint32_t>(window - (sent - forwarded));
    if (!waiting.empty() && room > 0) {
      std::string piece = waiting.substr(0, std::min<size_t>(room, 65536));
      machine->Send(VIRTIO_VSOCK_OP_RW, guest_port, host_port, piece);
      sent += static_cast<uint32_t>(piece.size());
      waiting.erase(0, piece.size());
      continue;
    }
    std::optional<Packet> packet = machine->Receive();
    ASSERT_TRUE(packet.has_value()) << "a wake-up was lost";
    window = packet->header.buf_alloc;
    forwarded = packet->header.fwd_cnt;
    if (packet->header.op == VIRTIO_VSOCK_OP_RW) {
      waiting += packet->data;
      machine->driver.forwarded += packet->header.len;
      if (waiting.empty() || machine->driver.forwarded % 3 == 0) {
        machine->Send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, guest_port, host_port);
      }
    } else if (packet->header.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
      machine->Send(VIRTIO_VSOCK_OP_CREDIT_UPDATE, guest_port, host_port);
    } else if (packet->header.op == VIRTIO_VSOCK_OP_SHUTDOWN) {
      ended = true;
    }
  }
  machine->Send(VIRTIO_VSOCK_OP_SHUTDOWN, guest_port, host_port, "", 3);
  writer.join();
  reader.join();
  EXPECT_TRUE(got == data) << "of " << data.size() << " bytes " << got.size() << " came back";
}

TEST_F(VhostVsockTest, MuchDataComesBackUnchanged) {
  for (bool event_index : {true, false}) {
    SCOPED_TRACE(event_index);
    FakeDriver::Options options;
    options.ring_size = 16;
    options.event_index = event_index;
    options.indirect = event_index;
    options.window = 32 * 1024;
    Build(options, VhostVsock::kControlPatienceUs, /*buffers=*/7);
    machine->Start();
    uint32_t port = 0;
    OwnedFd fd = Connected(&port);
    EchoMuch(machine.get(), fd.get(), kGuestPort, port);
    vhost.reset();
  }
}

TEST_F(VhostVsockTest, ConnectionsOutliveAPauseButNotAResetOfTheGuest) {
  Build();
  machine->Start();
  uint32_t port = 0;
  OwnedFd fd = Connected(&port);
  uint16_t base = machine->Stop();
  EXPECT_NE(base, 0);
  ASSERT_TRUE(WriteText(fd.get(), "meanwhile"));
  EXPECT_FALSE(machine->Receive(/*patience_ms=*/50).has_value());
  // As QEMU does: the receive ring's index is its own.
  vhost_vring_state rx{0, 0};
  ASSERT_EQ(vhost->Ioctl(VHOST_GET_VRING_BASE, &rx), 0);
  for (unsigned i = 0; i < 2; ++i) {
    ASSERT_EQ(machine->Ioctl<vhost_vring_state>(VHOST_SET_VRING_BASE, {i, i == 0 ? rx.num : base}), 0);
  }
  ASSERT_EQ(machine->Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1), 0);
  EXPECT_EQ(machine->Expect(VIRTIO_VSOCK_OP_RW).data, "meanwhile");

  machine->Stop();
  auto fresh = std::make_unique<Machine>(vhost.get());
  fresh->driver.Offer(8);
  fresh->Start(/*base=*/0);
  EXPECT_EQ(ReadToEnd(fd.get()), "") << "the guest has forgotten it";
  machine = std::move(fresh);
  Connected(&port);
}

TEST_F(VhostVsockTest, ABrokenRingEndsConnectionsUntilTheGuestIsReset) {
  Build();
  machine->Start();
  uint32_t port = 0;
  OwnedFd fd = Connected(&port);
  machine->driver.from_guest().descriptor(0)->addr = ~0ull;
  machine->driver.from_guest().descriptor(0)->len = 100;
  machine->driver.from_guest().descriptor(0)->flags = 0;
  machine->driver.from_guest().Publish(0);
  ASSERT_TRUE(WriteText(fd.get(), "wakes it"));
  EXPECT_EQ(ReadToEnd(fd.get()), "");
  machine->Stop();
  auto fresh = std::make_unique<Machine>(vhost.get());
  fresh->driver.Offer(8);
  fresh->Start();
  machine = std::move(fresh);
  Connected(&port);
}

TEST_F(VhostVsockTest, IoctlsThatCannotBeAreRefused) {
  Build();
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_SET_FEATURES, uint64_t{1} << VIRTIO_F_ACCESS_PLATFORM), -EOPNOTSUPP);
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_VSOCK_SET_GUEST_CID, 2), -EINVAL);
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_VSOCK_SET_GUEST_CID, uint64_t{1} << 32), -EINVAL);
  EXPECT_EQ(machine->Ioctl<vhost_vring_state>(VHOST_SET_VRING_NUM, {2, 128}), -ENOBUFS);
  EXPECT_EQ(machine->Ioctl<vhost_vring_file>(VHOST_SET_VRING_CALL, {2, -1}), -ENOBUFS);
  EXPECT_EQ(machine->Ioctl<vhost_vring_state>(VHOST_SET_VRING_NUM, {0, 100}), -EINVAL);
  EXPECT_EQ(machine->Ioctl<vhost_vring_state>(VHOST_SET_VRING_BASE, {0, 65536}), -EINVAL);
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_NET_SET_BACKEND, 0), -ENOTTY);
  EXPECT_EQ(machine->Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1), -EFAULT) << "no rings, no memory";
  machine->Start();
  EXPECT_EQ(machine->Ioctl<vhost_vring_state>(VHOST_SET_VRING_NUM, {0, 64}), -EBUSY);
}

TEST_F(VhostVsockTest, ALiveMigrationSeesWhatIsWritten) {
  Build();
  machine->Start();
  std::vector<uint8_t> log((FakeMemory::kHighAddress + FakeMemory::kRegionBytes) / 4096 / 8);
  uint64_t features = VhostVsock::kFeatures;
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_SET_LOG_BASE, reinterpret_cast<uint64_t>(log.data())), 0);
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_SET_FEATURES, features), 0);
  uint32_t port = 0;
  OwnedFd fd = Connected(&port);
  machine->Stop();
  EXPECT_NE(std::count_if(log.begin(), log.end(), [](uint8_t byte) { return byte != 0; }), 0);
  std::fill(log.begin(), log.end(), 0);
  EXPECT_EQ(machine->Ioctl<uint64_t>(VHOST_SET_FEATURES, features & ~(uint64_t{1} << VHOST_F_LOG_ALL)), 0);
  ASSERT_EQ(machine->Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1), 0);
  ASSERT_TRUE(WriteText(fd.get(), "unlogged"));
  machine->Expect(VIRTIO_VSOCK_OP_RW);
  machine->Stop();
  EXPECT_EQ(std::count_if(log.begin(), log.end(), [](uint8_t byte) { return byte != 0; }), 0);
}

TEST_F(VhostVsockTest, TheInterruptCanBeMovedWhileTheDeviceRuns) {
  Build();
  machine->Start();
  OwnedFd masked(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  ASSERT_EQ(machine->Ioctl<vhost_vring_file>(VHOST_SET_VRING_CALL, {0, masked.get()}), 0);
  OwnedFd fd = HostAsks();
  pollfd ready{.fd = masked.get(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&ready, 1, kPatienceMs), 1);
  ASSERT_EQ(machine->Ioctl<vhost_vring_file>(VHOST_SET_VRING_CALL, {0, machine->call_fd(0)}), 0);
  machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
}

TEST_F(VhostVsockTest, ItsThreadTakesNoSignals) {
  Build();
  machine->Start();
  OwnedFd fd = HostAsks();
  machine->Expect(VIRTIO_VSOCK_OP_REQUEST);  // Now the thread is sure to run.
  int found = 0;
  DIR* tasks = ::opendir("/proc/self/task");
  while (dirent* entry = ::readdir(tasks)) {
    std::ifstream status("/proc/self/task/" + std::string(entry->d_name) + "/status");
    std::string name;
    uint64_t blocked = 0;
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("Name:\t", 0) == 0) name = line.substr(6);
      if (line.rfind("SigBlk:\t", 0) == 0) blocked = std::stoull(line.substr(8), nullptr, 16);
    }
    if (name != "still-vsock") continue;
    ++found;
    for (int signal : {SIGINT, SIGTERM, SIGALRM, SIGUSR1, SIGCHLD, SIGIO}) {
      EXPECT_NE(blocked >> (signal - 1) & 1, 0u) << signal;
    }
  }
  ::closedir(tasks);
  EXPECT_EQ(found, 1);
}

// A background snapshot that is stuck: a page that the device writes is held back, and the hypervisor stops the VM.
TEST_F(VhostVsockTest, AStopDoesNotWaitForAPageThatIsHeldBack) {
  OwnedFd fault_fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!fault_fd.valid()) GTEST_SKIP() << "userfaultfd: " << strerror(errno);
  Build({}, /*patience_us=*/50'000, /*buffers=*/0);
  FakeDriver& driver = machine->driver;
  uint64_t page = driver.memory().Allocate(4096, 4096);
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  ASSERT_EQ(::ioctl(fault_fd.get(), UFFDIO_API, &api), 0);
  uffdio_register watch{};
  watch.range = {reinterpret_cast<uint64_t>(driver.memory().At(page)), 4096};
  watch.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(::ioctl(fault_fd.get(), UFFDIO_REGISTER, &watch), 0);

  driver.to_guest().Add({{page, 4096}}, true);
  machine->Start();
  OwnedFd fd = HostAsks();
  pollfd faulted{.fd = fault_fd.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&faulted, 1, kPatienceMs), 1);

  EXPECT_EQ(machine->Ioctl<vhost_vring_file>(VHOST_SET_VRING_CALL, {0, machine->call_fd(0)}), 0) << "never waits";
  machine->Stop();  // Would never come back if it waited for the device's thread.
  EXPECT_EQ(machine->Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1), -EBUSY);

  uffdio_zeropage release{};
  release.range = watch.range;
  ASSERT_EQ(::ioctl(fault_fd.get(), UFFDIO_ZEROPAGE, &release), 0);
  // The thread comes back; what it had in hand is not completed. The machine can start again where it was stopped, and
  // the connection whose packet was lost is gone on both sides.
  int started = -EBUSY;
  auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (started == -EBUSY && std::chrono::steady_clock::now() < deadline) {
    started = machine->Ioctl<int>(VHOST_VSOCK_SET_RUNNING, 1);
  }
  ASSERT_EQ(started, 0);
  EXPECT_EQ(ReadToEnd(fd.get()), "");
  auto used = driver.to_guest().Take();
  while (!used.has_value() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
    used = driver.to_guest().Take();
  }
  ASSERT_TRUE(used.has_value());
  virtio_vsock_hdr header;
  std::memcpy(&header, driver.memory().At(page), sizeof header);
  EXPECT_EQ(header.op, VIRTIO_VSOCK_OP_RST);
}

}  // namespace
}  // namespace still::vsock
