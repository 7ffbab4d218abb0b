// libstill-vsock.so, second part: a hypervisor that may not call userfaultfd(2) gets its descriptor from
// /dev/userfaultfd instead, where that is permitted.
//
// QEMU's background-snapshot needs faults of the kernel as well as its own (this library's device writes guest memory
// by readv, for one), which vm.unprivileged_userfaultfd=0 refuses to ordinary users. The device (Linux 6.1) gives the
// same to whoever may open it. QEMU 7.2 makes the call through syscall(2) of the C library, so that is where we stand.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>

namespace still::vsock {
namespace {

// -1 when the device is not there, may not be opened, or refuses.
int UserfaultfdFromDevice(int flags) {
  const char* chosen = std::getenv("STILL_USERFAULTFD_DEVICE");  // For tests, and for hosts that have it elsewhere.
  int device = ::open(chosen != nullptr ? chosen : "/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (device < 0) return -1;
  int fd = ::ioctl(device, USERFAULTFD_IOC_NEW, flags);
  ::close(device);
  return fd;
}

}  // namespace
}  // namespace still::vsock

extern "C" __attribute__((visibility("default"))) long syscall(long number, ...) noexcept {
  // As many as any system call takes; what the caller did not give is not looked at by the kernel either.
  va_list arguments;
  va_start(arguments, number);
  long argument[6];
  for (long& value : argument) value = va_arg(arguments, long);
  va_end(arguments);

  using Syscall = long (*)(long, long, long, long, long, long, long);
  static std::atomic<Syscall> next{nullptr};
  Syscall call = next.load(std::memory_order_relaxed);
  if (call == nullptr) {
    call = reinterpret_cast<Syscall>(::dlsym(RTLD_NEXT, "syscall"));
    next.store(call, std::memory_order_relaxed);
  }
  long result = call(number, argument[0], argument[1], argument[2], argument[3], argument[4], argument[5]);
  if (number != SYS_userfaultfd || result >= 0 || errno != EPERM) return result;
  int fd = still::vsock::UserfaultfdFromDevice(static_cast<int>(argument[0]));
  if (fd < 0) errno = EPERM;  // What the caller expects to hear.
  return fd;
}
