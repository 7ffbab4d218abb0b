#include "session/hypervisor/qemu/ram_priming.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "session/memory/process_memory.h"

namespace still::session {
namespace {

constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kLargePage = 2 << 20;
constexpr uint64_t kExclusive = uint64_t{1} << 56;  // pagemap(5), bit 56. Not so the zero page.
constexpr uint64_t kWorthCollapsing = kLargePage / kSmallPage / 2;
constexpr int kMadviseCollapse = 25;  // linux/mman.h; the C library of Debian 12 does not have it yet.
constexpr size_t kMaxMaps = 4 << 20;
constexpr uint64_t kMergedAtMost = 16 << 20;  // Beyond it, it is something else: the buffer of TCG's code, for one.

struct Mapping {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool anonymous = false;
};

// proc(5), /proc/pid/maps: "begin-end perms ...", addresses in hexadecimal.
absl::StatusOr<std::vector<Mapping>> WritableMappings(pid_t pid, uint64_t bytes) {
  STILL_ASSIGN_OR_RETURN(std::string maps, ReadFile(absl::StrCat("/proc/", pid, "/maps"), kMaxMaps));
  std::vector<Mapping> found;
  for (absl::string_view line : absl::StrSplit(maps, '\n', absl::SkipEmpty())) {
    std::vector<absl::string_view> words = absl::StrSplit(line, absl::MaxSplits(' ', 2));
    std::pair<absl::string_view, absl::string_view> range = absl::StrSplit(words[0], absl::MaxSplits('-', 1));
    Mapping mapping;
    if (words.size() < 3 || words[1].substr(0, 3) != "rw-" || !absl::SimpleHexAtoi(range.first, &mapping.begin) ||
        !absl::SimpleHexAtoi(range.second, &mapping.end)) {
      continue;
    }
    uint64_t length = mapping.end - mapping.begin;
    // "begin-end perms offset device inode path": anonymous memory has no inode.
    mapping.anonymous = absl::StrContains(words[2], " 00:00 0");
    if (length >= bytes && length <= bytes + kMergedAtMost) found.push_back(mapping);
  }
  return found;
}

absl::StatusOr<uint64_t> TouchMapping(pid_t pid, const Mapping& mapping) {
  STILL_ASSIGN_OR_RETURN(
      ProcessMemory memory,
      ProcessMemory::Open({.pid = pid, .address = mapping.begin, .bytes = mapping.end - mapping.begin}));
  return memory.Populate();
}

// Only anonymous memory: of a mapped file the kernel protects no large page, but takes it out of the page table.
absl::StatusOr<uint64_t> CollapseMapping(int pidfd, int pagemap, const Mapping& mapping, absl::Duration end) {
  uint64_t collapsed = 0;
  uint64_t entries[kLargePage / kSmallPage];
  for (uint64_t at = (mapping.begin + kLargePage - 1) / kLargePage * kLargePage; at + kLargePage <= mapping.end;
       at += kLargePage) {
    if (Clock::Real().Monotonic() > end) break;
    STILL_RETURN_IF_ERROR(
        PReadExactly(pagemap, entries, sizeof entries, at / kSmallPage * sizeof entries[0], "pagemap"));
    auto used = std::count_if(std::begin(entries), std::end(entries), [](uint64_t e) { return (e & kExclusive) != 0; });
    // A range that the guest hardly uses would only grow.
    if (static_cast<uint64_t>(used) < kWorthCollapsing) continue;
    iovec range{.iov_base = reinterpret_cast<void*>(at), .iov_len = kLargePage};
    if (::syscall(SYS_process_madvise, pidfd, &range, 1, kMadviseCollapse, 0u) > 0) {
      collapsed += kLargePage;
    } else if (errno == EPERM || errno == ENOSYS) {
      break;
    }  // Else no large page is free, or this range cannot be one: the next may.
  }
  return collapsed;
}

}  // namespace

absl::StatusOr<Primed> PrimeRam(pid_t pid, uint64_t bytes, absl::Duration limit) {
  const absl::Duration end = Clock::Real().Monotonic() + limit;
  STILL_ASSIGN_OR_RETURN(std::vector<Mapping> mappings, WritableMappings(pid, bytes));
  STILL_ASSIGN_OR_RETURN(OwnedFd pagemap, OpenFile(absl::StrCat("/proc/", pid, "/pagemap"), O_RDONLY));
  OwnedFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd.valid()) return ErrnoStatus(errno, absl::StrCat("process ", pid));
  Primed primed;
  for (const Mapping& mapping : mappings) {
    if (mapping.anonymous) {
      STILL_ASSIGN_OR_RETURN(uint64_t collapsed, CollapseMapping(pidfd.get(), pagemap.get(), mapping, end));
      primed.collapsed_bytes += collapsed;
    }
    STILL_ASSIGN_OR_RETURN(uint64_t touched, TouchMapping(pid, mapping));
    primed.touched_pages += touched;
  }
  return primed;
}

void LogPriming(const absl::StatusOr<Primed>& primed) {
  if (primed.ok()) {
    LogInfo("memory primed", {{"pages_touched", primed->touched_pages}, {"bytes_collapsed", primed->collapsed_bytes}});
  } else {
    LogWarning("memory is not primed: this pause is longer", {{"error", primed.status().ToString()}});
  }
}

}  // namespace still::session
