#include "tests/support/fault/sqlite_faults.h"

#include <signal.h>
#include <sqlite3.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/check.h"

namespace still {
namespace {

// SQLite calls plain functions, so what they know is global.
std::atomic<int64_t> change_count{0};
std::atomic<int64_t> kill_at{0};
std::atomic<int64_t> full_from{0};

// What is to become of a change.
enum class Fate { kHappens, kHalfHappens, kFails, kKills };

Fate NextChange() {
  const int64_t change = ++change_count;
  if (change == kill_at) return Fate::kKills;
  const int64_t full = full_from;
  if (full == 0 || change < full) return Fate::kHappens;
  return change == full ? Fate::kHalfHappens : Fate::kFails;
}

[[noreturn]] void KillProcess() {
  ::kill(::getpid(), SIGKILL);
  for (;;) ::pause();
}

ssize_t WriteAt(int fd, const void* data, size_t size, off_t offset) {
  switch (NextChange()) {
    case Fate::kHappens:
      return ::pwrite(fd, data, size, offset);
    case Fate::kHalfHappens:
      if (size > 1) return ::pwrite(fd, data, size / 2, offset);
      [[fallthrough]];
    case Fate::kFails:
      errno = ENOSPC;
      return -1;
    case Fate::kKills:
      (void)::pwrite(fd, data, size / 2, offset);
      KillProcess();
  }
  STILL_CHECK(false);
}

// A full disk does not hinder these.
int Truncate(int fd, off_t size) {
  if (NextChange() == Fate::kKills) KillProcess();
  return ::ftruncate(fd, size);
}

int Unlink(const char* path) {
  if (NextChange() == Fate::kKills) KillProcess();
  return ::unlink(path);
}

struct Call {
  const char* name;
  sqlite3_syscall_ptr replacement;
};
const Call kCalls[] = {{"pwrite64", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt)},
                       {"pwrite", reinterpret_cast<sqlite3_syscall_ptr>(WriteAt)},
                       {"ftruncate", reinterpret_cast<sqlite3_syscall_ptr>(Truncate)},
                       {"unlink", reinterpret_cast<sqlite3_syscall_ptr>(Unlink)}};

}  // namespace

SqliteFaults::SqliteFaults() {
  sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
  STILL_CHECK(vfs != nullptr && vfs->iVersion >= 3);
  change_count = 0;
  kill_at = 0;
  full_from = 0;
  for (const Call& call : kCalls) STILL_CHECK(vfs->xSetSystemCall(vfs, call.name, call.replacement) == SQLITE_OK);
}

SqliteFaults::~SqliteFaults() {
  sqlite3_vfs* vfs = sqlite3_vfs_find(nullptr);
  for (const Call& call : kCalls) STILL_CHECK(vfs->xSetSystemCall(vfs, call.name, nullptr) == SQLITE_OK);
}

int64_t SqliteFaults::changes() const { return change_count; }
void SqliteFaults::KillAt(int64_t k) { kill_at = k == 0 ? 0 : change_count + k; }
void SqliteFaults::FillDiskAt(int64_t k) { full_from = k == 0 ? 0 : change_count + k; }

}  // namespace still
