#include "session/memory/process_memory.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "session/memory/write_protection.h"

namespace still::session {
namespace {

// proc(5), pagemap: present, swapped, and "page is file-page or shared-anon".
constexpr uint64_t kPresent = uint64_t{1} << 63;
constexpr uint64_t kSwapped = uint64_t{1} << 62;
constexpr uint64_t kOfFile = uint64_t{1} << 61;
constexpr uint64_t kPagesAtOnce = 1024;  // process_vm_readv(2) takes IOV_MAX pieces.

}  // namespace

absl::StatusOr<ProcessMemory> ProcessMemory::Open(const MemoryRange& range) {
  STILL_ASSIGN_OR_RETURN(OwnedFd pagemap, OpenFile(absl::StrCat("/proc/", range.pid, "/pagemap"), O_RDONLY));
  return ProcessMemory(range, std::move(pagemap));
}

absl::Status ProcessMemory::Read(uint64_t offset, char* out, uint64_t bytes) const {
  for (uint64_t done = 0; done < bytes;) {
    iovec here{.iov_base = out + done, .iov_len = bytes - done};
    iovec there{.iov_base = reinterpret_cast<void*>(range_.address + offset + done), .iov_len = bytes - done};
    ssize_t got = ::process_vm_readv(range_.pid, &here, 1, &there, 1, 0);
    if (got <= 0) return ErrnoStatus(got < 0 ? errno : EFAULT, absl::StrCat("read the memory of process ", range_.pid));
    done += static_cast<uint64_t>(got);
  }
  return absl::OkStatus();
}

absl::Status ProcessMemory::ReadPagemap(uint64_t page, uint64_t count, std::vector<uint64_t>& entries) const {
  entries.resize(count);
  return PReadExactly(pagemap_.get(), entries.data(), count * sizeof entries[0],
                      (range_.address / kPageBytes + page) * sizeof entries[0], "pagemap");
}

// What is neither present nor swapped has not been touched, or was given back: the file's. A swapped page of the file may look
// like one of our own, which is only read in vain.
absl::StatusOr<std::vector<bool>> ProcessMemory::OwnPages(uint64_t page, uint64_t count) const {
  std::vector<uint64_t> entries;
  STILL_RETURN_IF_ERROR(ReadPagemap(page, count, entries));
  std::vector<bool> own(count);
  for (uint64_t i = 0; i < count; ++i) {
    own[i] = (entries[i] & (kPresent | kSwapped)) != 0 && (entries[i] & kOfFile) == 0;
  }
  return own;
}

absl::StatusOr<uint64_t> ProcessMemory::Populate() const {
  uint64_t touched = 0;
  std::vector<uint64_t> entries;
  std::vector<char> bytes(kPagesAtOnce);
  std::vector<iovec> absent;
  for (uint64_t at = 0; at < range_.bytes; at += kPagesAtOnce * kPageBytes) {
    const uint64_t pages = std::min(kPagesAtOnce, (range_.bytes - at) / kPageBytes);
    STILL_RETURN_IF_ERROR(ReadPagemap(at / kPageBytes, pages, entries));
    absent.clear();
    for (uint64_t i = 0; i < pages; ++i) {
      if ((entries[i] & (kPresent | kSwapped)) != 0) continue;
      absent.push_back({.iov_base = reinterpret_cast<void*>(range_.address + at + i * kPageBytes), .iov_len = 1});
    }
    if (absent.empty()) continue;
    iovec here{.iov_base = bytes.data(), .iov_len = absent.size()};
    ssize_t got = ::process_vm_readv(range_.pid, &here, 1, absent.data(), absent.size(), 0);
    if (got != static_cast<ssize_t>(absent.size())) {
      return ErrnoStatus(got < 0 ? errno : EFAULT, absl::StrCat("touch the memory of process ", range_.pid));
    }
    touched += absent.size();
  }
  return touched;
}

}  // namespace still::session
