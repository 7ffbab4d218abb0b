// libstill-vsock.so, third part: the hypervisor reaches nothing on the host's loopback over the network.
//
// QEMU's user-mode network (libslirp) makes the guest's connections as its own, and its gateway address, 10.0.2.2, stands
// for the host's loopback, where services listen that nobody else may reach. libslirp can refuse that
// (disable_host_loopback), but no QEMU up to 10.0 lets it be asked for; and it would leave the name server's address, which
// on many hosts is a loopback address as well, with every port. So the rule stands where all of that ends: at the C
// library's calls. Port 53 stays open, for the host's own resolver.
//
// The hypervisor's own connections are not touched: they are UNIX sockets and descriptors.
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace still::vsock {
namespace {

constexpr uint16_t kDomain = 53;

// The host's own, in host byte order; 0.0.0.0 is taken for it by Linux.
bool IsLoopback(uint32_t address) { return address >> 24 == 127 || address == INADDR_ANY; }

bool IsForbidden(const sockaddr* address, socklen_t size) {
  if (address == nullptr || size < sizeof(sa_family_t)) return false;
  if (address->sa_family == AF_INET && size >= sizeof(sockaddr_in)) {
    sockaddr_in to;
    std::memcpy(&to, address, sizeof to);
    return IsLoopback(ntohl(to.sin_addr.s_addr)) && ntohs(to.sin_port) != kDomain;
  }
  if (address->sa_family == AF_INET6 && size >= sizeof(sockaddr_in6)) {
    sockaddr_in6 to;
    std::memcpy(&to, address, sizeof to);
    bool loopback = IN6_IS_ADDR_LOOPBACK(&to.sin6_addr) || IN6_IS_ADDR_UNSPECIFIED(&to.sin6_addr);
    if (IN6_IS_ADDR_V4MAPPED(&to.sin6_addr)) {
      uint32_t mapped;
      std::memcpy(&mapped, &to.sin6_addr.s6_addr[12], sizeof mapped);
      loopback = IsLoopback(ntohl(mapped));
    }
    return loopback && ntohs(to.sin6_port) != kDomain;
  }
  return false;
}

// The C library's function behind ours.
template <typename Function>
Function* Next(std::atomic<Function*>& known, const char* name) {
  Function* function = known.load(std::memory_order_relaxed);
  if (function == nullptr) {
    function = reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
    known.store(function, std::memory_order_relaxed);
  }
  return function;
}

}  // namespace
}  // namespace still::vsock

extern "C" {

__attribute__((visibility("default"))) int connect(int fd, const sockaddr* address, socklen_t size) {
  if (still::vsock::IsForbidden(address, size)) {
    errno = ECONNREFUSED;
    return -1;
  }
  static std::atomic<int (*)(int, const sockaddr*, socklen_t)> next{nullptr};
  return still::vsock::Next(next, "connect")(fd, address, size);
}

__attribute__((visibility("default"))) ssize_t sendto(int fd, const void* data, size_t count, int flags,
                                                      const sockaddr* address, socklen_t size) {
  if (still::vsock::IsForbidden(address, size)) {
    errno = ECONNREFUSED;
    return -1;
  }
  static std::atomic<ssize_t (*)(int, const void*, size_t, int, const sockaddr*, socklen_t)> next{nullptr};
  return still::vsock::Next(next, "sendto")(fd, data, count, flags, address, size);
}

__attribute__((visibility("default"))) ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  if (message != nullptr &&
      still::vsock::IsForbidden(static_cast<const sockaddr*>(message->msg_name), message->msg_namelen)) {
    errno = ECONNREFUSED;
    return -1;
  }
  static std::atomic<ssize_t (*)(int, const msghdr*, int)> next{nullptr};
  return still::vsock::Next(next, "sendmsg")(fd, message, flags);
}

}  // extern "C"
