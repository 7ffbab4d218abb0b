// PinPool: what the captures of one host keep for their pins, bounded together.
//
// While a disk is pinned, what the guest overwrites is kept in a file in its session's directory, and these files share
// one file system. Each capture looks at all of them: together they may take half of what is free without them, and the
// one that keeps most gives up first. There is no account that could be wrong after a crash: the files are the account.
// A file belongs to a live capture as long as somebody holds its lock; what nobody holds is removed.
//
// Not thread-safe; several processes use the same directories.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::session {

class PinPool {
 public:
  // `directory`: of one session. `sessions`: where the directories of all sessions are; empty: this is the only one.
  // `limit`: bytes for all together; 0: half of what is free without them.
  PinPool(std::string directory, std::string sessions, uint64_t limit = 0)
      : directory_(std::move(directory)), sessions_(std::move(sessions)), limit_(limit) {}

  // Makes the file for one disk of a capture, sparse and of this size: raw, or qcow2 where no file of this file system may
  // be that long. It is held until `lock` is closed.
  struct File {
    std::string path;
    OwnedFd lock;
    bool qcow2 = false;
  };
  absl::StatusOr<File> Make(const std::string& name, uint64_t size) const;
  // Bytes that the files of this session take.
  uint64_t own_bytes() const;
  // RESOURCE_EXHAUSTED when all together take too much and this session's take most.
  absl::Status Check() const;
  // Removes this session's files that nobody holds.
  absl::Status Sweep() const;

 private:
  const std::string directory_;
  const std::string sessions_;
  const uint64_t limit_;
};

}  // namespace still::session
