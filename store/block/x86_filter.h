// The x86 filter (docs/format/repository.md, "Filter"): x86-64 code names what it calls, jumps to and reads by the
// distance from the instruction, so that two calls of one function differ. With positions instead of distances they
// are equal bytes, which zstd finds. Knows nothing of frames. liblzma has one like it, which can be called without LZMA
// from 5.8 on (Debian 12 has 5.4), and which looks at calls and jumps only.
#pragma once

#include <cstddef>

#include "absl/types/span.h"

namespace still::store {

// Replaces distances by positions in `data`, and gives how many: much of x86-64 code has one in 40 bytes, other data
// one in thousands.
size_t ApplyX86Filter(absl::Span<char> data);
// The inverse, for any bytes.
void UndoX86Filter(absl::Span<char> data);

}  // namespace still::store
