// libstill-vsock.so, preloaded into a hypervisor (LD_PRELOAD), first part: it answers the vhost ioctls on one
// descriptor, which can be of /dev/null, with a VhostVsock of its own. Everything else goes to the C library unchanged.
//
// STILL_VSOCK_FDS="<vhost>,<listener>,<directory>" names the inherited descriptors: the one whose ioctls are ours, the
// listening socket <directory>/vsock.sock, and the directory. (See UnixBridge for the latter two.)
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "session/vsock/device/vhost_vsock.h"

namespace still::vsock {
namespace {

struct Inherited {
  int vhost_fd = -1;
  int listener_fd = -1;
  int directory_fd = -1;
  struct stat vhost_identity {};
};

Inherited inherited;  // Written by the constructor, before the program's main.

// Takes our own path out of LD_PRELOAD: what the hypervisor starts is none of our business.
void LeaveEnvironment() {
  ::unsetenv("STILL_VSOCK_FDS");
  const char* preload = std::getenv("LD_PRELOAD");
  Dl_info self{};
  if (preload == nullptr || ::dladdr(&inherited, &self) == 0) return;
  std::string kept;
  for (const char* at = preload; *at != '\0';) {
    size_t size = std::strcspn(at, ": ");
    if (size > 0 && std::string(at, size) != self.dli_fname) kept.append(kept.empty() ? "" : ":").append(at, size);
    at += size + std::strspn(at + size, ": ");
  }
  if (kept.empty()) {
    ::unsetenv("LD_PRELOAD");
  } else {
    ::setenv("LD_PRELOAD", kept.c_str(), 1);
  }
}

__attribute__((constructor)) void Configure() {
  Inherited found;
  char rest = 0;
  const char* fds = std::getenv("STILL_VSOCK_FDS");
  bool good = fds != nullptr &&
              std::sscanf(fds, "%d,%d,%d%c", &found.vhost_fd, &found.listener_fd, &found.directory_fd, &rest) == 3;
  for (int fd : {found.vhost_fd, found.listener_fd, found.directory_fd}) {
    good = good && fd > 2 && ::fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
  }
  if (good && ::fstat(found.vhost_fd, &found.vhost_identity) == 0) {
    inherited = found;
  } else if (fds != nullptr) {
    std::fprintf(stderr, "still-vsock: STILL_VSOCK_FDS=%s: not three open descriptors; the device is off\n", fds);
  }
  LeaveEnvironment();
}

bool IsOurs(int fd) {
  if (fd < 0 || fd != inherited.vhost_fd) return false;
  // The number may have been closed and used again (device_del).
  struct stat now {};
  return ::fstat(fd, &now) == 0 && now.st_dev == inherited.vhost_identity.st_dev &&
         now.st_ino == inherited.vhost_identity.st_ino;
}

int Serve(unsigned long request, void* argument) {
  static std::mutex mutex;                // The hypervisor's control threads, one at a time.
  static VhostVsock* instance = nullptr;  // Never destroyed: its thread runs until the process ends.
  std::lock_guard<std::mutex> lock(mutex);
  if (instance == nullptr) {
    uint32_t seed = 0;
    if (::getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed) seed = static_cast<uint32_t>(::getpid());
    // Made at the first ioctl and not earlier: the hypervisor may fork into the background before.
    instance = VhostVsock::Create(
                   {.listener_fd = inherited.listener_fd, .directory_fd = inherited.directory_fd, .port_seed = seed})
                   .release();
    if (instance == nullptr) return -EMFILE;
  }
  int result = instance->StartThread();
  return result != 0 ? result : instance->Ioctl(request, argument);
}

}  // namespace
}  // namespace still::vsock

extern "C" __attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...) noexcept {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (_IOC_TYPE(request) == VHOST_VIRTIO && still::vsock::IsOurs(fd)) {
    int result = still::vsock::Serve(request, argument);
    if (result >= 0) return result;
    errno = -result;
    return -1;
  }
  using Ioctl = int (*)(int, unsigned long, void*);
  static std::atomic<Ioctl> next{nullptr};
  Ioctl call = next.load(std::memory_order_relaxed);
  if (call == nullptr) {
    call = reinterpret_cast<Ioctl>(::dlsym(RTLD_NEXT, "ioctl"));
    next.store(call, std::memory_order_relaxed);
  }
  return call(fd, request, argument);
}
