// AbsolutePath: a path that means the same wherever a program goes.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still {

// `path` itself if it begins with a slash, else below the working directory. NOT_FOUND when that was deleted. Empty stays
// empty.
absl::StatusOr<std::string> AbsolutePath(const std::string& path);
// The directory that holds `path`: "." for a name without a slash. Asks nobody.
std::string ParentDirectory(const std::string& path);

}  // namespace still
