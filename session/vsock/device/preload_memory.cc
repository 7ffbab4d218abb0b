// libstill-vsock.so, fifth part: the hypervisor hands its memory over to the memory engine (docs/memory.md).
//
// Whoever is to answer a process's write faults needs a userfaultfd that was made in that process. It is made here, before
// main(), sent away, and closed: as long as the hypervisor itself held it, its memory would stay protected when the engine
// dies.
//
// The hypervisor is told that its memory is a file that it shares. That file is mapped in another way here
// (memory_news.h), and where it lies is told.
#undef _FILE_OFFSET_BITS  // It would give `mmap` the name of `mmap64`.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "session/vsock/device/memory_news.h"

namespace still::vsock {
namespace {

struct Handover {
  int socket = -1;
  struct stat file {};
  char kind = 0;
};

Handover handover;                       // Written by the constructor, before the program's main.
std::atomic<bool> handover_open{false};  // The memory has not been mapped yet.

void Tell(const MemoryNews& news, int fd) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  iovec data{const_cast<MemoryNews*>(&news), sizeof news};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  // Nobody hears it: there is no engine then.
  (void)::sendmsg(handover.socket, &message, MSG_NOSIGNAL);
}

__attribute__((constructor)) void HandDescriptorOver() {
  const char* wanted = std::getenv(kMemoryVariable);
  if (wanted == nullptr) return;
  int file = -1;
  char rest = 0;
  const int read = std::sscanf(wanted, "%d,%d,%c%c", &handover.socket, &file, &handover.kind, &rest);
  ::unsetenv(kMemoryVariable);
  if (read != 3 || ::fcntl(handover.socket, F_SETFD, FD_CLOEXEC) != 0 || ::fstat(file, &handover.file) != 0) return;
  // Where ptrace is for ancestors only (Yama): the engine is a child of our parent's.
  (void)::prctl(PR_SET_PTRACER, static_cast<unsigned long>(::getppid()), 0, 0, 0);
  const int descriptor = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  Tell({.kind = MemoryNews::kDescriptor, .error = descriptor < 0 ? errno : 0}, descriptor);
  if (descriptor >= 0) ::close(descriptor);
  handover_open = true;
}

// A mapping is first made without rights, to find a place, and then made again there: the second one counts.
bool IsMemory(int protection, int flags, int fd) {
  struct stat now {};
  return handover_open && fd >= 0 && (flags & MAP_SHARED) != 0 && (protection & PROT_WRITE) != 0 &&
         ::fstat(fd, &now) == 0 && now.st_dev == handover.file.st_dev && now.st_ino == handover.file.st_ino;
}

void* Map(void* at, size_t size, int protection, int flags, int fd, off64_t offset) {
  using Mmap = void* (*)(void*, size_t, int, int, int, off64_t);
  static std::atomic<Mmap> next{nullptr};
  Mmap call = next.load(std::memory_order_relaxed);
  if (call == nullptr) {
    call = reinterpret_cast<Mmap>(::dlsym(RTLD_NEXT, "mmap64"));
    next.store(call, std::memory_order_relaxed);
  }
  if (!IsMemory(protection, flags, fd)) return call(at, size, protection, flags, fd, offset);
  if (handover.kind != kMapShared) flags = (flags & ~MAP_TYPE) | MAP_PRIVATE;
  if (handover.kind == kMapAnonymous) {
    flags |= MAP_ANONYMOUS;
    fd = -1;
    offset = 0;
  }
  void* mapped = call(at, size, protection, flags, fd, offset);
  if (mapped == MAP_FAILED) return mapped;
  handover_open = false;
  Tell({.kind = MemoryNews::kMapped, .address = reinterpret_cast<uint64_t>(mapped), .bytes = size}, -1);
  ::close(handover.socket);
  return mapped;
}

}  // namespace
}  // namespace still::vsock

extern "C" {

__attribute__((visibility("default"))) void* mmap(void* at, size_t size, int protection, int flags, int fd,
                                                  off_t offset) noexcept {
  return still::vsock::Map(at, size, protection, flags, fd, offset);
}

__attribute__((visibility("default"))) void* mmap64(void* at, size_t size, int protection, int flags, int fd,
                                                    off64_t offset) noexcept {
  return still::vsock::Map(at, size, protection, flags, fd, offset);
}

}  // extern "C"
