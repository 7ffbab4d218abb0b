// Priming: prepares the guest's memory, as the hypervisor's process maps it, for being write-protected.
//
// Protecting is what the pause consists of, and its cost is that of the page tables. So while the VM still runs
//   - large pages are put together again, where the kernel can (MADV_COLLAPSE, Linux 6.1): each snapshot splits those
//     that it protects, page by page, and one entry of a page table is protected 512 times faster than 512;
//   - absent pages are read, one byte each, because QEMU has to do that before it protects (an absent page cannot be
//     protected), and does it inside the pause.
// Both from outside: process_madvise(2), which needs CAP_SYS_NICE, and process_vm_readv(2). pagemap(5) says where.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "absl/time/time.h"
#include "base/status.h"

namespace still::session {

struct Primed {
  uint64_t touched_pages = 0;
  uint64_t collapsed_bytes = 0;
};

// For every writable mapping of `pid` that may be a memory block of `bytes`: of that length, or somewhat longer because
// the kernel has merged it with a neighbour. Putting together stops after `limit`, the rest is quick. Never changes what
// the guest sees; an error costs nothing but speed.
absl::StatusOr<Primed> PrimeRam(pid_t pid, uint64_t bytes, absl::Duration limit = absl::Seconds(2));
void LogPriming(const absl::StatusOr<Primed>& primed);

}  // namespace still::session
