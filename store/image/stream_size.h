// Images of which nobody knows the size before their end: what comes through a pipe.
#pragma once

#include <cstdint>

namespace still::store {

// As ImageOptions::size: the image is as long as what is written to it, from its beginning on and without gaps, by Write()
// alone. At most kMaxStreamSize.
inline constexpr uint64_t kSizeOfStream = ~uint64_t{0};
// One bit for each MiB is kept from the beginning.
inline constexpr uint64_t kMaxStreamSize = uint64_t{64} << 40;

}  // namespace still::store
