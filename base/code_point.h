// FirstCodePoint: reads UTF-8 as RFC 3629 has it, nothing longer than need be, no surrogates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace still {

struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;
};

// The code point that `text`, which is not empty, begins with; 0 bytes: it begins with no UTF-8.
CodePoint FirstCodePoint(absl::string_view text);

}  // namespace still
