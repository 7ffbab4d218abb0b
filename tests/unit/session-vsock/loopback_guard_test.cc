// What is preloaded into a hypervisor keeps it from the host's loopback, and from nothing else. A small program stands for
// the hypervisor: this test itself, started again with the library.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

constexpr char kPort[] = "STILL_LOOPBACK_TEST_PORT";

sockaddr_in V4(const char* address, uint16_t port) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_port = htons(port);
  EXPECT_EQ(::inet_pton(AF_INET, address, &out.sin_addr), 1);
  return out;
}

sockaddr_in6 V6(const char* address, uint16_t port) {
  sockaddr_in6 out{};
  out.sin6_family = AF_INET6;
  out.sin6_port = htons(port);
  EXPECT_EQ(::inet_pton(AF_INET6, address, &out.sin6_addr), 1);
  return out;
}

// 0, or the error.
template <typename Address>
int Connect(const Address& to) {
  OwnedFd fd(::socket(reinterpret_cast<const sockaddr&>(to).sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0 ? 0 : errno;
}

int SendTo(const sockaddr_in& to) {
  OwnedFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return ::sendto(fd.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 1 ? 0 : errno;
}

int SendMessage(sockaddr_in to) {
  OwnedFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  char byte = 'x';
  iovec part{&byte, 1};
  msghdr message{};
  message.msg_name = &to;
  message.msg_namelen = sizeof to;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return ::sendmsg(fd.get(), &message, 0) == 1 ? 0 : errno;
}

void BehaveAsAHypervisor(uint16_t port, bool guarded) {
  const int refused = guarded ? ECONNREFUSED : 0;
  for (const char* address : {"127.0.0.1", "127.1.2.3", "0.0.0.0"}) {
    EXPECT_EQ(Connect(V4(address, port)), refused) << address;
    EXPECT_EQ(SendTo(V4(address, port)), refused) << address;
    EXPECT_EQ(SendMessage(V4(address, port)), refused) << address;
  }
  EXPECT_EQ(Connect(V6("::ffff:127.0.0.1", port)), refused);
  if (guarded) {
    EXPECT_EQ(Connect(V6("::1", port)), ECONNREFUSED);
  }
  EXPECT_EQ(SendTo(V4("127.0.0.1", 53)), 0) << "the host's resolver";
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  EXPECT_EQ(::send(pair->first.get(), "x", 1, 0), 1) << "its own sockets";
  EXPECT_EQ(::sendto(pair->first.get(), "x", 1, 0, nullptr, 0), 1);
}

TEST(LoopbackGuard, TheHypervisorReachesNothingOnTheHostsLoopback) {
  if (const char* text = ::getenv(kPort); text != nullptr) {
    int port = 0;
    ASSERT_TRUE(absl::SimpleAtoi(text, &port));
    return BehaveAsAHypervisor(static_cast<uint16_t>(port), ::getenv("STILL_GUARDED") != nullptr);
  }
  OwnedFd listening(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = V4("0.0.0.0", 0);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listening.get(), 16), 0);
  ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = absl::StrCat(ntohs(address.sin_port));
  auto library = FindPreloadLibrary();
  ASSERT_TRUE(library.ok()) << library.status();
  for (bool guarded : {false, true}) {
    ProcessOptions options{.environment = {{kPort, port}}};
    char self[4096] = {};
    ASSERT_GT(::readlink("/proc/self/exe", self, sizeof self - 1), 0);
    options.argv = {self, "--gtest_filter=LoopbackGuard.TheHypervisorReachesNothingOnTheHostsLoopback"};
    if (guarded) {
      options.environment.push_back(PreloadVariable(*library));
      options.environment.push_back({"STILL_GUARDED", "1"});
    }
    auto ended = RunCommand(std::move(options), absl::Seconds(60));
    ASSERT_TRUE(ended.ok()) << ended.status();
    EXPECT_TRUE(ended->exit.ok()) << (guarded ? "with" : "without") << " the library: " << ended->stdout_text
                                  << ended->stderr_text;
  }
}

TEST(LoopbackGuard, AHypervisorThatHasNotLoadedItIsFound) {
  EXPECT_EQ(CheckPreloaded(::getpid(), "/nowhere/libstill-vsock.so").code(), absl::StatusCode::kFailedPrecondition);
  auto library = FindPreloadLibrary();
  ASSERT_TRUE(library.ok()) << library.status();
  auto child = ChildProcess::Start({.argv = {"sleep", "60"}, .environment = {PreloadVariable(*library)}});
  ASSERT_TRUE(child.ok()) << child.status();
  // It is loaded before the program's main, which begins a little after Start.
  absl::Status loaded;
  for (int i = 0; i < 2000 && !(loaded = CheckPreloaded(child->pid(), *library)).ok(); ++i) ::usleep(10'000);
  EXPECT_TRUE(loaded.ok()) << loaded;
}

}  // namespace
}  // namespace still::session
