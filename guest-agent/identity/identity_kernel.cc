#include "guest-agent/identity/identity_kernel.h"

#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/hex.h"

namespace still::agent {

absl::StatusOr<std::string> ParseMac(absl::string_view text) {
  std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  std::string bytes;
  for (absl::string_view part : parts) {
    if (part.size() == 2) bytes += BytesFromHex(part).value_or("");
  }
  // The lowest bit of the first byte marks a group of machines.
  if (parts.size() != 6 || bytes.size() != 6 || (bytes[0] & 1) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("network address ", absl::CHexEscape(text), ": not of one machine"));
  }
  return bytes;
}

absl::Status RealIdentityKernel::MixEntropy(absl::string_view entropy) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile("/dev/urandom", O_WRONLY));
  // struct rand_pool_info: two ints, then the bytes (linux/random.h).
  std::vector<uint32_t> request((sizeof(rand_pool_info) + entropy.size()) / sizeof(uint32_t) + 1);
  auto* info = reinterpret_cast<rand_pool_info*>(request.data());
  info->entropy_count = static_cast<int>(entropy.size() * 8);
  info->buf_size = static_cast<int>(entropy.size());
  std::memcpy(info->buf, entropy.data(), entropy.size());
  if (::ioctl(fd.get(), RNDADDENTROPY, info) != 0) return ErrnoStatus(errno, "RNDADDENTROPY");
  if (::ioctl(fd.get(), RNDRESEEDCRNG) != 0) return ErrnoStatus(errno, "RNDRESEEDCRNG");
  return absl::OkStatus();
}

absl::Status RealIdentityKernel::SetWallClock(absl::Time time) {
  timespec now = absl::ToTimespec(time);
  if (::clock_settime(CLOCK_REALTIME, &now) != 0) return ErrnoStatus(errno, "clock_settime");
  return absl::OkStatus();
}

absl::StatusOr<std::string> RealIdentityKernel::HostName() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return ErrnoStatus(errno, "gethostname");
  return std::string(name);
}

absl::Status RealIdentityKernel::SetHostName(const std::string& name) {
  if (::sethostname(name.data(), name.size()) != 0) return ErrnoStatus(errno, "sethostname");
  return absl::OkStatus();
}

absl::Status RealIdentityKernel::SetMac(const std::string& interface, const std::string& mac) {
  STILL_ASSIGN_OR_RETURN(std::string bytes, ParseMac(mac));
  if (interface.size() >= IFNAMSIZ) return absl::InvalidArgumentError(absl::StrCat(interface, ": name too long"));
  OwnedFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  ifreq address{};
  interface.copy(address.ifr_name, IFNAMSIZ - 1);
  address.ifr_hwaddr.sa_family = ARPHRD_ETHER;
  std::memcpy(address.ifr_hwaddr.sa_data, bytes.data(), bytes.size());
  // Without taking it down where that is possible: that would drop its routes.
  if (::ioctl(fd.get(), SIOCSIFHWADDR, &address) == 0) return absl::OkStatus();
  if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("set address of ", interface));
  ifreq flags{};
  interface.copy(flags.ifr_name, IFNAMSIZ - 1);
  if (::ioctl(fd.get(), SIOCGIFFLAGS, &flags) != 0) return ErrnoStatus(errno, absl::StrCat("flags of ", interface));
  const short up = flags.ifr_flags;
  flags.ifr_flags = static_cast<short>(up & ~IFF_UP);
  if (::ioctl(fd.get(), SIOCSIFFLAGS, &flags) != 0) return ErrnoStatus(errno, absl::StrCat("take down ", interface));
  absl::Status status;
  if (::ioctl(fd.get(), SIOCSIFHWADDR, &address) != 0)
    status = ErrnoStatus(errno, absl::StrCat("set address of ", interface));
  flags.ifr_flags = up;
  if (::ioctl(fd.get(), SIOCSIFFLAGS, &flags) != 0) {
    status = FirstError(status, ErrnoStatus(errno, absl::StrCat("bring up ", interface)));
  }
  return status;
}

}  // namespace still::agent
