// BootFiles: kernels and initial RAM disks of restored sessions, each once on this host and linked (link(2)) into every
// session that has it: a fork is there before as much could be copied. Whatever no session has any more is removed when
// another one is added.
//
// Thread-safe and safe between processes (no state).
#pragma once

#include <functional>
#include <string>

#include "base/status.h"

namespace still::snapshot {

class BootFiles {
 public:
  // `directory`: on the file system of the sessions; made on first use.
  explicit BootFiles(std::string directory) : directory_(std::move(directory)) {}

  // Makes `path` a name of the file `key`, which `write` fills unless it is there. `key`: a file name, the same for the
  // same content only. The file is read-only and synced. Where links are not possible `path` becomes a file of its own.
  absl::Status LinkTo(const std::string& key, const std::string& path,
                      const std::function<absl::Status(int fd)>& write) const;

 private:
  absl::Status Add(const std::string& key, const std::function<absl::Status(int fd)>& write) const;
  void RemoveUnused() const;

  const std::string directory_;
};

}  // namespace still::snapshot
