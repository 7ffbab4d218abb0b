// The project's own programs and files find one another by their places.
#pragma once

#include <string>

#include "base/status.h"

namespace still {

// `name` beside the running program, or in ../lib/stillpoint; what the variable `environment` names comes first. NOT_FOUND.
absl::StatusOr<std::string> FindSibling(const std::string& name, const char* environment);

}  // namespace still
