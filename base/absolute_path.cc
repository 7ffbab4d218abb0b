#include "base/absolute_path.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace still {

absl::StatusOr<std::string> AbsolutePath(const std::string& path) {
  if (path.empty()) return path;
  std::error_code error;
  // The overload without an error code throws where there is no working directory any more.
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (!error) return absolute.string();
  return ErrnoStatus(error.value(),
                     absl::StrCat("working directory, which \"", path,
                                  "\" is relative to (write a path that begins with /, or go elsewhere)"));
}

std::string ParentDirectory(const std::string& path) {
  std::string text = path;
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  const std::filesystem::path parent = std::filesystem::path(text).parent_path();
  return parent.empty() ? "." : parent.string();
}

}  // namespace still
