// What a qcow2 image lies over, read from its header (QEMU's docs/interop/qcow2.txt).
//
// The header is the host's: whoever made the image wrote it, and a guest whose disk it is writes behind it. Its numbers are
// bounded all the same.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace still::session {

struct BackingImage {
  std::string path;
  std::string format;  // "qcow2" or "raw", as the image above says.
};

// From the image right below to the last one; empty for an image that stands alone. UNIMPLEMENTED: one of them is no file, does
// not say its format, or keeps its data in another file.
absl::StatusOr<std::vector<BackingImage>> BackingChainOf(const std::string& path);

}  // namespace still::session
