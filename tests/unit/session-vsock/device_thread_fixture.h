// A whole VhostVsock: its thread, real UNIX sockets in a directory of its own, and a Machine in front of it.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <algorithm>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "session/vsock/device/vhost_vsock.h"
#include "tests/unit/session-vsock/machine.h"

namespace still::vsock {

// What can be read until `size` bytes are there, the end, or the test's patience is over.
inline std::string ReadSome(int fd, size_t size) {
  std::string data;
  while (data.size() < size) {
    pollfd ready{.fd = fd, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, kPatienceMs) <= 0) {
      ADD_FAILURE() << "nothing to read";
      break;
    }
    char buffer[65536];
    ssize_t got = ::recv(fd, buffer, std::min(sizeof buffer, size - data.size()), 0);
    if (got <= 0) break;
    data.append(buffer, static_cast<size_t>(got));
  }
  return data;
}
inline std::string ReadToEnd(int fd) { return ReadSome(fd, SIZE_MAX); }
inline std::string ReadLine(int fd) {
  std::string line;
  while (line.empty() || line.back() != '\n') {
    std::string byte = ReadSome(fd, 1);
    if (byte.empty()) break;
    line += byte;
  }
  return line;
}
inline bool WriteText(int fd, const std::string& text) {
  return ::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

class DeviceThreadFixture : public ::testing::Test {
 protected:
  static constexpr uint32_t kGuestPort = 5000;
  static constexpr uint32_t kHostPort = 1024;

  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-vsock-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root = pattern;
    directory = JoinPath(root, std::string(120, 'd'));  // Longer than a socket's address.
    ASSERT_TRUE(MakeDirectories(directory).ok());
    listener = *ListenUnix(JoinPath(directory, "vsock.sock"), 128);
    ASSERT_EQ(::fcntl(listener.get(), F_SETFL, O_NONBLOCK), 0);
    directory_fd = *OpenFile(directory, O_PATH | O_DIRECTORY);
  }
  void TearDown() override {
    vhost.reset();
    EXPECT_TRUE(RemoveTree(root).ok());
  }

  void Build(const FakeDriver::Options& options = {}, uint64_t patience_us = VhostVsock::kControlPatienceUs,
             int buffers = 24) {
    vhost = VhostVsock::Create({.listener_fd = listener.get(),
                                .directory_fd = directory_fd.get(),
                                .port_seed = 99,
                                .control_patience_us = patience_us});
    ASSERT_NE(vhost, nullptr);
    ASSERT_EQ(vhost->StartThread(), 0);
    machine = std::make_unique<Machine>(vhost.get(), options);
    machine->driver.Offer(buffers);
  }

  OwnedFd HostConnects() { return *ConnectUnix(JoinPath(directory, "vsock.sock")); }
  OwnedFd HostAsks(const std::string& line = "CONNECT 5000\n") {
    OwnedFd fd = HostConnects();
    EXPECT_TRUE(WriteText(fd.get(), line));
    return fd;
  }
  // An accepted connection, and the port it has on the host.
  OwnedFd Connected(uint32_t* port) {
    OwnedFd fd = HostAsks();
    *port = machine->Expect(VIRTIO_VSOCK_OP_REQUEST).header.src_port;
    machine->Send(VIRTIO_VSOCK_OP_RESPONSE, kGuestPort, *port);
    EXPECT_EQ(ReadLine(fd.get()), "OK " + std::to_string(*port) + "\n");
    return fd;
  }

  std::string root;
  std::string directory;
  OwnedFd listener;
  OwnedFd directory_fd;
  std::unique_ptr<VhostVsock> vhost;
  std::unique_ptr<Machine> machine;
};

}  // namespace still::vsock
