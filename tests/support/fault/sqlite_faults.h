// SqliteFaults: kills the process at, or fills the disk from, the k-th change that SQLite makes to a file.
//
//   SqliteFaults faults;
//   faults.KillAt(k);
//   ... open a catalog, work with it: SIGKILL in the middle of the k-th change ...
//
// Changes are writes (of the database, its log, and the log's index), truncations and removals of files. They are met
// where SQLite's own tests meet them, in the table of system calls of its unix VFS (sqlite.org/c3ref/vfs.html,
// xSetSystemCall), so what SQLite then does is what it does when the kernel says so. One object at a time: it concerns
// all databases of the process. Thread-safe.
#pragma once

#include <cstdint>

namespace still {

class SqliteFaults {
 public:
  SqliteFaults();
  // The system calls are the kernel's again.
  ~SqliteFaults();
  SqliteFaults(const SqliteFaults&) = delete;
  SqliteFaults& operator=(const SqliteFaults&) = delete;

  int64_t changes() const;
  // At the k-th change from now on (1: the next); half of a write is done. 0: never.
  void KillAt(int64_t k);
  // From the k-th change on every write fails with ENOSPC; of the first one half is done. 0: there is room again.
  void FillDiskAt(int64_t k);
};

}  // namespace still
