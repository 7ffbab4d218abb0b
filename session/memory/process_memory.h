// ProcessMemory: a range of another process's memory, read from outside (process_vm_readv(2), proc(5): pagemap).
//
// The right to do so is ptrace's (ptrace(2), PTRACE_MODE_ATTACH_REALCREDS). Thread-safe.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace still::session {

struct MemoryRange {
  pid_t pid = -1;
  uint64_t address = 0;  // Where the process has it.
  uint64_t bytes = 0;    // Whole pages.
};

class ProcessMemory {
 public:
  static absl::StatusOr<ProcessMemory> Open(const MemoryRange& range);

  // Blocks only for pages that the process has swapped out.
  absl::Status Read(uint64_t offset, char* out, uint64_t bytes) const;
  // Reads a byte of every page that the process has not touched yet, and so gives it one: only then can it be protected.
  // The number of pages. Also what a hypervisor would do itself in the pause.
  absl::StatusOr<uint64_t> Populate() const;
  // Of a private mapping of a file: whether each of `count` pages may differ from the file's, because it has been written to. A page
  // that is said not to does not.
  absl::StatusOr<std::vector<bool>> OwnPages(uint64_t page, uint64_t count) const;

  const MemoryRange& range() const { return range_; }

 private:
  absl::Status ReadPagemap(uint64_t page, uint64_t count, std::vector<uint64_t>& entries) const;
  ProcessMemory(const MemoryRange& range, OwnedFd pagemap) : range_(range), pagemap_(std::move(pagemap)) {}

  MemoryRange range_;
  OwnedFd pagemap_;
};

}  // namespace still::session
