// Bytes written as hexadecimal digits. (absl has a function of each direction, but the releases of Debian 12 and 13 have none in
// common for this one that the newer does not warn of.)
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace still {

// The bytes of an even number of digits, in upper or lower case; nothing when it is anything else.
std::optional<std::string> BytesFromHex(absl::string_view hex);

}  // namespace still
