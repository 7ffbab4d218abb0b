#include "snapshot/scratch_directory.h"

#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::snapshot {

absl::StatusOr<std::unique_ptr<ScratchDirectory>> ScratchDirectory::Make() {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::temp_directory_path(error);
  if (error) return ErrnoStatus(error.value(), "directory for temporary files; set TMPDIR to one that exists");
  std::string pattern = (parent / "still-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, absl::StrCat("mkdtemp ", pattern));
  return std::make_unique<ScratchDirectory>(pattern);
}

ScratchDirectory::~ScratchDirectory() { RemoveTree(path_).IgnoreError(); }

}  // namespace still::snapshot
