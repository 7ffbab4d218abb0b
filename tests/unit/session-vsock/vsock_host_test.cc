// VsockHost: what a session sees of either back end.
#include "session/vsock/vsock_host.h"

#include <sys/stat.h>

#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "tests/unit/session-vsock/device_thread_fixture.h"

namespace still::session {
namespace {

using vsock::FakeDriver;
using vsock::kPatienceMs;
using vsock::Machine;
using vsock::Packet;
using vsock::ReadSome;
using vsock::VhostVsock;

class VsockHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-vsock-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root = pattern;
    directory = JoinPath(root, std::string(120, 'd'));
    ASSERT_TRUE(MakeDirectories(directory).ok());
    library = JoinPath(root, "libstill-vsock.so");
    std::ofstream(library) << "not looked into here";
    ::setenv("STILL_VSOCK_LIBRARY", library.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("STILL_VSOCK_LIBRARY");
    device.reset();
    host.reset();
    EXPECT_TRUE(RemoveTree(root).ok());
  }

  void Create(VsockOptions options = {}) {
    options.directory = directory;
    options.backend = VsockBackend::kUserspace;
    auto created = VsockHost::Create(options);
    ASSERT_TRUE(created.ok()) << created.status();
    host = *std::move(created);
  }

  // Does in this process what the preloaded library does in the hypervisor's, from the attachment alone.
  void StartMachine() {
    VsockAttachment attachment = host->attachment();
    int fds[3] = {-1, -1, -1};
    for (const auto& [name, value] : attachment.environment) {
      if (name == "STILL_VSOCK_FDS") {
        ASSERT_EQ(std::sscanf(value.c_str(), "%d,%d,%d", &fds[0], &fds[1], &fds[2]), 3);
      }
    }
    ASSERT_EQ(fds[0], attachment.vhost_fd);
    ASSERT_EQ(attachment.inherited_fds, std::vector<int>({fds[1], fds[2]}));
    device = VhostVsock::Create({.listener_fd = fds[1], .directory_fd = fds[2], .port_seed = 1});
    ASSERT_NE(device, nullptr);
    ASSERT_EQ(device->StartThread(), 0);
    machine = std::make_unique<Machine>(device.get());
    machine->driver.cid = host->guest_cid();
    machine->driver.Offer(16);
    machine->Start();
  }

  std::string root;
  std::string directory;
  std::string library;
  std::unique_ptr<VsockHost> host;
  std::unique_ptr<VhostVsock> device;
  std::unique_ptr<Machine> machine;
};

TEST_F(VsockHostTest, TheGuestsConnectionsAreAcceptedInOrder) {
  Create();
  EXPECT_EQ(host->backend(), "userspace");
  EXPECT_NE(host->port(), 0u);
  StartMachine();
  for (uint32_t guest_port : {500u, 501u}) {
    machine->Send(VIRTIO_VSOCK_OP_REQUEST, guest_port, host->port());
    machine->Expect(VIRTIO_VSOCK_OP_RESPONSE);
    machine->Send(VIRTIO_VSOCK_OP_RW, guest_port, host->port(), std::to_string(guest_port));
  }
  for (const char* expected : {"500", "501"}) {
    auto fd = host->Accept(absl::Milliseconds(kPatienceMs));
    ASSERT_TRUE(fd.ok()) << fd.status();
    EXPECT_EQ(ReadSome(fd->get(), 3), expected);
  }
}

TEST_F(VsockHostTest, OnlyAPrivilegedPortOfTheGuestIsTheAgents) {
  Create();
  StartMachine();
  auto dial = [&](uint32_t guest_port) {
    machine->Send(VIRTIO_VSOCK_OP_REQUEST, guest_port, host->port());
    machine->Expect(VIRTIO_VSOCK_OP_RESPONSE);
  };
  for (uint32_t guest_port : {1024u, 5000u, 0xfffffffeu}) {
    dial(guest_port);
    absl::Status refused = host->Accept(absl::Milliseconds(kPatienceMs)).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kPermissionDenied) << refused;
    EXPECT_TRUE(absl::StrContains(refused.message(), "update")) << refused;
    machine->Expect(VIRTIO_VSOCK_OP_SHUTDOWN);
    machine->Send(VIRTIO_VSOCK_OP_RST, guest_port, host->port());
  }
  dial(1023);
  auto agent = host->Accept(absl::Milliseconds(kPatienceMs));
  EXPECT_TRUE(agent.ok()) << agent.status();
}

TEST_F(VsockHostTest, OtherServicesOfTheHostAreReachedFromAnyPort) {
  Create();
  auto service = ListenUnix(JoinPath(directory, "vsock.sock_77"));
  ASSERT_TRUE(service.ok()) << service.status();
  StartMachine();
  std::vector<absl::StatusOr<OwnedFd>> accepted;  // Kept: their ends would be packets of their own.
  for (uint32_t guest_port : {500u, 5000u}) {
    machine->Send(VIRTIO_VSOCK_OP_REQUEST, guest_port, 77);
    machine->Expect(VIRTIO_VSOCK_OP_RESPONSE);
    accepted.push_back(AcceptWithin(service->get(), absl::Milliseconds(kPatienceMs), "the guest"));
    EXPECT_TRUE(accepted.back().ok()) << guest_port;
  }
}

TEST_F(VsockHostTest, ConnectsToAPortInTheGuest) {
  Create();
  StartMachine();
  std::thread guest([&] {
    Packet request = machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
    EXPECT_EQ(request.header.dst_port, 77u);
    machine->Send(VIRTIO_VSOCK_OP_RESPONSE, 77, request.header.src_port);
    machine->Send(VIRTIO_VSOCK_OP_RW, 77, request.header.src_port, "OK 1\nfirst bytes");
  });
  auto fd = host->Connect(77, absl::Milliseconds(kPatienceMs));
  guest.join();
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(ReadSome(fd->get(), 16), "OK 1\nfirst bytes") << "all that follows the answer's line is the guest's";
}

TEST_F(VsockHostTest, NothingInTheGuestAccepts) {
  Create();
  StartMachine();
  std::thread guest([&] {
    Packet request = machine->Expect(VIRTIO_VSOCK_OP_REQUEST);
    machine->Send(VIRTIO_VSOCK_OP_RST, 77, request.header.src_port);
  });
  EXPECT_EQ(host->Connect(77, absl::Milliseconds(kPatienceMs)).status().code(), absl::StatusCode::kUnavailable);
  guest.join();
  EXPECT_EQ(host->Connect(77, absl::Milliseconds(50)).status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(VsockHostTest, AcceptEndsInTimeOrWhenShutDown) {
  Create();
  EXPECT_EQ(host->Accept(absl::Milliseconds(20)).status().code(), absl::StatusCode::kDeadlineExceeded);
  std::thread other([&] { host->Shutdown(); });
  EXPECT_EQ(host->Accept(absl::InfiniteDuration()).status().code(), absl::StatusCode::kCancelled);
  other.join();
  host->Shutdown();
  EXPECT_EQ(host->Accept(absl::InfiniteDuration()).status().code(), absl::StatusCode::kCancelled);
}

TEST_F(VsockHostTest, ChosenNumbersAreKeptAndOthersAreRandom) {
  Create({.port = 4000, .guest_cid = 1234});
  EXPECT_EQ(host->port(), 4000u);
  EXPECT_EQ(host->guest_cid(), 1234u);
  EXPECT_EQ(host->attachment().guest_cid, 1234u);
  Create();
  uint32_t first = host->guest_cid();
  EXPECT_GT(first, 2u);
  Create();
  EXPECT_NE(host->guest_cid(), first) << "a restored VM must get another one";
}

TEST_F(VsockHostTest, OnlyItsOwnerReachesTheSockets) {
  Create();
  for (const char* name : {"vsock.sock", "vsock.sock_1024", "vsock.sock_1024_privileged"}) {
    struct stat status {};
    ASSERT_EQ(::stat(JoinPath(directory, name).c_str(), &status), 0) << name;
    EXPECT_EQ(status.st_mode & 0777, 0600u) << name;
  }
}

TEST_F(VsockHostTest, TheLibraryIsPreloadedBesideOthers) {
  Create();
  auto preload = [&] {
    for (const auto& [name, value] : host->attachment().environment) {
      if (name == "LD_PRELOAD") return value;
    }
    return std::string();
  };
  const char* before = std::getenv("LD_PRELOAD");
  std::string saved = before != nullptr ? before : "";
  ::unsetenv("LD_PRELOAD");
  EXPECT_EQ(preload(), library);
  ::setenv("LD_PRELOAD", "/lib/other.so", 1);
  EXPECT_EQ(preload(), library + ":/lib/other.so");
  ::unsetenv("LD_PRELOAD");
  if (!saved.empty()) ::setenv("LD_PRELOAD", saved.c_str(), 1);
}

TEST_F(VsockHostTest, AMissingLibraryIsNamed) {
  ::setenv("STILL_VSOCK_LIBRARY", "/nowhere/libstill-vsock.so", 1);
  auto created = VsockHost::Create({.directory = directory, .backend = VsockBackend::kUserspace});
  EXPECT_EQ(created.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(created.status().message().find("/nowhere/libstill-vsock.so"), absl::string_view::npos);
  std::string spaced = JoinPath(root, "with space.so");
  std::ofstream(spaced) << "x";
  ::setenv("STILL_VSOCK_LIBRARY", spaced.c_str(), 1);
  created = VsockHost::Create({.directory = directory, .backend = VsockBackend::kUserspace});
  EXPECT_EQ(created.status().code(), absl::StatusCode::kFailedPrecondition) << "LD_PRELOAD cannot name it";
}

TEST_F(VsockHostTest, TheKernelsBackEndSaysWhatIsMissingAndAutomaticGoesOn) {
  auto kernel = VsockHost::Create({.directory = directory, .backend = VsockBackend::kKernel});
  auto automatic = VsockHost::Create({.directory = directory});
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  if (kernel.ok()) {
    EXPECT_EQ((*kernel)->backend(), "kernel");
    EXPECT_EQ((*automatic)->backend(), "kernel");
    return;
  }
  bool named = absl::StrContains(kernel.status().message(), "/dev/vhost-vsock") ||
               absl::StrContains(kernel.status().message(), "AF_VSOCK");
  EXPECT_TRUE(named) << kernel.status();
  EXPECT_EQ((*automatic)->backend(), "userspace");
}

}  // namespace
}  // namespace still::session
