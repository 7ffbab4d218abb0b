// MoveIntoPlace: what was made beside its place gets its name, and takes nobody's.
#pragma once

#include <string>

#include "base/status.h"

namespace still {

// Gives the file or directory `from` the name `to`, on one file system. ALREADY_EXISTS when `to` is taken; atomic against
// others who do the same. Where the file system has no RENAME_NOREPLACE (NFS, many in user space) it is done by
// MoveWithoutFlag(). Not durable before the directory is synced.
absl::Status MoveIntoPlace(const std::string& from, const std::string& to);

// The same in the way of file systems that know neither flag nor, some of them, hard links: a file is linked to its new name
// and unlinked from the old one, or takes the place of an empty one that was made for it; a directory that of an empty
// directory. A crash in between leaves a second name of a whole file, or an empty file or directory at `to`.
absl::Status MoveWithoutFlag(const std::string& from, const std::string& to);

}  // namespace still
