// libstill-vsock.so, fourth part: a hypervisor that runs as a user of its own opens what it was given.
//
// Its files are root's, in directories of root's. Whoever starts it opens them and hands over the descriptors, and it is told
// the names /proc/self/fd/N. The kernel would open such a name anew and ask for permission once more; here it is a duplicate
// of the descriptor, with the rights that it was given with and no others. (QEMU has sets of descriptors for disks, but
// neither for memory nor for kernels and firmware.) /dev/kvm is the descriptor STILL_KVM_FD, where that is set.
#undef _FORTIFY_SOURCE    // It would define `open` in the headers.
#undef _FILE_OFFSET_BITS  // It would give it the name of `open64`.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <cstring>

namespace still::vsock {
namespace {

// A number of up to nine digits; -1 for anything else.
int ParseNumber(const char* text) {
  int number = 0;
  const char* digit = text;
  for (; *digit >= '0' && *digit <= '9' && digit - text < 9; ++digit) number = number * 10 + (*digit - '0');
  return digit == text || *digit != '\0' ? -1 : number;
}

// The descriptor that stands behind the name; -1: it is the name of a file.
int GivenFd(const char* path) {
  constexpr char kDescriptors[] = "/proc/self/fd/";
  if (std::strncmp(path, kDescriptors, sizeof kDescriptors - 1) == 0) {
    return ParseNumber(path + sizeof kDescriptors - 1);
  }
  if (std::strcmp(path, "/dev/kvm") != 0) return -1;
  const char* given = std::getenv("STILL_KVM_FD");
  return given == nullptr ? -1 : ParseNumber(given);
}

// From its beginning, as a file that is opened. (All duplicates have one place together: who reads a kernel does it with one
// descriptor after the other, disks are read at places, and memory is mapped.)
int Duplicate(int fd) {
  const int duplicate = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (duplicate >= 0) ::lseek(duplicate, 0, SEEK_SET);
  return duplicate;
}

int Open(const char* path, int flags, mode_t mode) {
  const int given = GivenFd(path);
  return given < 0 ? ::openat(AT_FDCWD, path, flags, mode) : Duplicate(given);
}

FILE* OpenStream(const char* path, const char* mode) {
  const int given = GivenFd(path);
  if (given >= 0) {
    const int fd = Duplicate(given);
    if (fd < 0) return nullptr;
    return ::fdopen(fd, mode);
  }
  using Fopen = FILE* (*)(const char*, const char*);
  static std::atomic<Fopen> next{nullptr};
  Fopen call = next.load(std::memory_order_relaxed);
  if (call == nullptr) {
    call = reinterpret_cast<Fopen>(::dlsym(RTLD_NEXT, "fopen64"));
    next.store(call, std::memory_order_relaxed);
  }
  return call(path, mode);
}

bool HasMode(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

}  // namespace
}  // namespace still::vsock

#define STILL_SHOWN extern "C" __attribute__((visibility("default")))

// What the C library offers under several names: for large files, and with the compiler's checks.
#define STILL_OPEN(name)                                   \
  STILL_SHOWN int name(const char* path, int flags, ...) { \
    mode_t mode = 0;                                       \
    if (still::vsock::HasMode(flags)) {                    \
      va_list arguments;                                   \
      va_start(arguments, flags);                          \
      mode = va_arg(arguments, mode_t);                    \
      va_end(arguments);                                   \
    }                                                      \
    return still::vsock::Open(path, flags, mode);          \
  }
STILL_OPEN(open)
STILL_OPEN(open64)
STILL_SHOWN int __open_2(const char* path, int flags) { return still::vsock::Open(path, flags, 0); }
STILL_SHOWN int __open64_2(const char* path, int flags) { return still::vsock::Open(path, flags, 0); }

STILL_SHOWN FILE* fopen(const char* path, const char* mode) { return still::vsock::OpenStream(path, mode); }
STILL_SHOWN FILE* fopen64(const char* path, const char* mode) { return still::vsock::OpenStream(path, mode); }

STILL_SHOWN int access(const char* path, int mode) noexcept {
  const int given = still::vsock::GivenFd(path);
  if (given < 0) return ::faccessat(AT_FDCWD, path, mode, 0);
  return ::fcntl(given, F_GETFD) < 0 ? -1 : 0;
}
