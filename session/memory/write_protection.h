// WriteProtection: who may write to a range of another process's memory, by a userfaultfd of that process's.
//
// The descriptor was made *in* the process whose memory it is (userfaultfd(2)); every call here acts on that process,
// from whichever process makes it. A write to a protected page stops the thread that makes it, in the kernel, until the
// page is lifted: whoever holds the descriptor reads who waits (struct uffd_msg), and must answer.
//
// Facts: ioctl_userfaultfd(2); Documentation/admin-guide/mm/userfaultfd.rst, "Write Protect Notifications". Two that are
// not there, seen with Linux 6.18: UFFDIO_UNREGISTER wakes nobody who waits for a write, so UFFDIO_WAKE must follow; and the
// memory stays protected as long as anybody, also the process itself, holds a copy of the descriptor.
//
// Thread-safe: no state but two numbers. No call waits for the process.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace still::session {

inline constexpr uint64_t kPageBytes = 4096;

// Once for each descriptor, before anything else. UNIMPLEMENTED: this kernel cannot protect memory from writing (Linux
// 5.7 for anonymous memory, 5.19 for shared memory).
absl::Status NegotiateUserfaultfd(int userfaultfd);

class WriteProtection {
 public:
  // [address, address + bytes) of the process, whole pages. The descriptor is borrowed.
  WriteProtection(int userfaultfd, uint64_t address, uint64_t bytes)
      : userfaultfd_(userfaultfd), address_(address), bytes_(bytes) {}

  // Nothing is protected yet, and no page is touched. FAILED_PRECONDITION: somebody else has registered the range.
  absl::Status Register() const;
  // Pages that nobody has touched yet are not protected where they are anonymous memory: see ProcessMemory::Populate.
  absl::Status Protect(uint64_t offset, uint64_t bytes) const { return Set(offset, bytes, true); }
  // Whoever waits for these pages goes on. Lifting what is not protected changes nothing, and wakes too.
  absl::Status Lift(uint64_t offset, uint64_t bytes) const { return Set(offset, bytes, false); }
  // All of it, in pieces: in one call the process's memory map would be locked for the whole time, 0.3 to 0.8 s a GiB
  // where pages are small and private.
  absl::Status LiftAll() const;
  // The memory is the process's own again, and nobody waits. Idempotent; also after the process has ended.
  absl::Status Unregister() const;

  int userfaultfd() const { return userfaultfd_; }
  uint64_t address() const { return address_; }
  uint64_t bytes() const { return bytes_; }

 private:
  absl::Status Set(uint64_t offset, uint64_t bytes, bool on) const;

  int userfaultfd_;
  uint64_t address_;
  uint64_t bytes_;
};

}  // namespace still::session
