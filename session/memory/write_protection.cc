#include "session/memory/write_protection.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"

namespace still::session {
namespace {

// Newer than Debian 12's headers (linux/userfaultfd.h of 6.4): absent pages of anonymous memory can be protected, too.
constexpr uint64_t kWpUnpopulated = 1 << 13;
constexpr uint64_t kLiftBytes = 2 << 20;

}  // namespace

absl::Status NegotiateUserfaultfd(int userfaultfd) {
  constexpr uint64_t kShared = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  for (uint64_t features : {kShared | kWpUnpopulated, kShared, uint64_t{UFFD_FEATURE_PAGEFAULT_FLAG_WP}}) {
    uffdio_api api{};
    api.api = UFFD_API;
    api.features = features;
    if (::ioctl(userfaultfd, UFFDIO_API, &api) == 0) return absl::OkStatus();
    if (errno != EINVAL) return ErrnoStatus(errno, "userfaultfd");
  }
  return absl::UnimplementedError("this kernel cannot protect memory from writing (Linux 5.7 or newer is needed)");
}

absl::Status WriteProtection::Register() const {
  uffdio_register wanted{};
  wanted.range = {.start = address_, .len = bytes_};
  wanted.mode = UFFDIO_REGISTER_MODE_WP;
  if (::ioctl(userfaultfd_, UFFDIO_REGISTER, &wanted) != 0) {
    if (errno == EBUSY) {
      return absl::FailedPreconditionError("the machine's memory is being watched by something else already");
    }
    return ErrnoStatus(errno, "register the machine's memory");
  }
  if ((wanted.ioctls >> _UFFDIO_WRITEPROTECT & 1) == 0) {
    (void)Unregister();
    return absl::UnimplementedError("this kernel cannot protect memory of this kind from writing");
  }
  return absl::OkStatus();
}

absl::Status WriteProtection::Set(uint64_t offset, uint64_t bytes, bool on) const {
  uffdio_writeprotect change{};
  change.range = {.start = address_ + offset, .len = bytes};
  change.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  while (::ioctl(userfaultfd_, UFFDIO_WRITEPROTECT, &change) != 0) {
    // The process's memory map is being changed by itself.
    if (errno == EAGAIN || errno == EINTR) continue;
    return ErrnoStatus(errno,
                       absl::StrCat(on ? "protect" : "lift the protection of", " ", bytes, " bytes at ", offset));
  }
  return absl::OkStatus();
}

absl::Status WriteProtection::LiftAll() const {
  for (uint64_t at = 0; at < bytes_; at += kLiftBytes) {
    STILL_RETURN_IF_ERROR(Lift(at, std::min(kLiftBytes, bytes_ - at)));
  }
  return absl::OkStatus();
}

absl::Status WriteProtection::Unregister() const {
  uffdio_range range{.start = address_, .len = bytes_};
  absl::Status unregistered;  // Where nothing is registered the call does nothing.
  if (::ioctl(userfaultfd_, UFFDIO_UNREGISTER, &range) != 0) {
    const int why = errno;
    // A process that has ended is ENOMEM here (fs/userfaultfd.c, userfaultfd_unregister), and ESRCH for every other call.
    uffdio_writeprotect lift{};
    lift.range = {.start = address_, .len = kPageBytes};
    const bool gone = ::ioctl(userfaultfd_, UFFDIO_WRITEPROTECT, &lift) != 0 && errno == ESRCH;
    if (!gone) unregistered = ErrnoStatus(why, "unregister the machine's memory");
  }
  (void)::ioctl(userfaultfd_, UFFDIO_WAKE, &range);
  return unregistered;
}

}  // namespace still::session
