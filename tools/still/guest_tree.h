// GuestTree: a directory tree that a guest wrote, mounted on the host. Paths are looked up as the guest would see them:
// symbolic links, absolute or with "..", never lead out of the tree (openat2(2), RESOLVE_IN_ROOT).
#pragma once

#include <sys/stat.h>

#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"

namespace still::cli {

struct TreeEntry {
  std::string name;
  struct stat info {};
  std::string link_target;  // Of a symbolic link.
};

struct TreeCopy {
  std::string path;         // In the tree.
  std::string destination;  // Of the host.
  std::function<void(const std::string& path)> skipped;
  std::function<bool()> go_on = [] { return true; };  // False: CANCELLED, with what was made until then.
};

class GuestTree {
 public:
  static absl::StatusOr<GuestTree> Open(const std::string& root);

  // The entries of a directory, sorted by name; of anything else, itself.
  absl::StatusOr<std::vector<TreeEntry>> List(const std::string& path) const;
  // Copies a file, a link or a whole directory to its destination; into it when that is a directory. Files are made anew,
  // with the guest's permission bits and times but as ours: no owners, no set-user-id bits. Devices, sockets and pipes
  // are left out, and `skipped` is told of them. Nothing that exists is replaced (ALREADY_EXISTS).
  absl::Status Copy(const TreeCopy& copy) const;

 private:
  explicit GuestTree(OwnedFd root) : root_(std::move(root)) {}
  absl::StatusOr<OwnedFd> Find(const std::string& path, int flags) const;

  OwnedFd root_;
};

}  // namespace still::cli
