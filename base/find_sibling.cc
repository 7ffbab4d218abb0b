#include "base/find_sibling.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace still {

absl::StatusOr<std::string> FindSibling(const std::string& name, const char* environment) {
  if (const char* path = std::getenv(environment); path != nullptr && *path != '\0') return std::string(path);
  std::error_code error;
  std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return ErrnoStatus(error.value(), "readlink /proc/self/exe");
  // A build has everything in one directory; an installation what is nobody's command below lib.
  for (const std::filesystem::path& path :
       {self.parent_path() / name, self.parent_path().parent_path() / "lib/stillpoint" / name}) {
    if (::access(path.c_str(), X_OK) == 0) return path.string();
  }
  return absl::NotFoundError(
      absl::StrCat(name, " is not beside ", self.string(), "; reinstall, or name it in ", environment));
}

}  // namespace still
