#include "session/hypervisor/memory_ways.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "session/memory/memory_engine.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

// From benchmarks/BUDGETS.md, "Stall".
constexpr char kEngineCost[] = "the pause does not grow with the memory";
constexpr char kBackgroundCost[] = "the pause is 5 to 25 ms for 512 MiB of memory and grows with it";
constexpr char kStoppedCost[] =
    "always there: the machine stands still while its memory is written, 0.5 to 1 s for each GiB";

// Write protection is what is needed (UFFDIO_API, ioctl_userfaultfd(2)).
bool CanWriteProtect(int fd) {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  return ::ioctl(fd, UFFDIO_API, &api) == 0;
}

MemoryWay SystemCall() {
  MemoryWay way{.name = "userfaultfd(2)"};
  OwnedFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC)));
  int why = errno;
  way.available = fd.valid() && CanWriteProtect(fd.get());
  if (way.available) {
    way.text = kBackgroundCost;
  } else if (fd.valid() || why == ENOSYS) {
    way.text = "this kernel cannot protect memory from writing (Linux 5.7 or newer is needed)";
  } else {
    way.text = absl::StrCat("not permitted (", std::strerror(why),
                            "): run as root, or set the sysctl vm.unprivileged_userfaultfd=1");
  }
  return way;
}

MemoryWay Device() {
  MemoryWay way{.name = "/dev/userfaultfd"};
  OwnedFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) {
    way.text = errno == ENOENT ? "not there (Linux 6.1 or newer has it)"
                               : absl::StrCat("not permitted (", std::strerror(errno),
                                              "): let this user read and write it, for example by a udev rule");
    return way;
  }
  OwnedFd fd(::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC));
  way.available = fd.valid() && CanWriteProtect(fd.get());
  way.text = way.available
                 ? absl::StrCat("in place of the system call, by a library loaded into QEMU: ", kBackgroundCost)
                 : "it is there, but gives nothing that protects memory from writing";
  return way;
}

MemoryWay Engine(bool can_write_protect) {
  MemoryWay way{.name = "the memory engine"};
  const absl::StatusOr<std::string> program = FindMemoryEngine();
  const absl::StatusOr<std::string> library = FindPreloadLibrary();
  way.available = can_write_protect && program.ok() && library.ok();
  if (way.available) {
    way.text = kEngineCost;
  } else if (!can_write_protect) {
    way.text = "it needs one of the two below";
  } else {
    way.text = std::string((program.ok() ? library.status() : program.status()).message());
  }
  return way;
}

}  // namespace

std::string UserfaultfdReason() { return SystemCall().text; }

std::vector<MemoryWay> MemoryWays() {
  MemoryWay system_call = SystemCall();
  MemoryWay device = Device();
  return {Engine(system_call.available || device.available),
          std::move(system_call),
          std::move(device),
          {.name = "stop and write", .available = true, .text = kStoppedCost}};
}

}  // namespace still::session
