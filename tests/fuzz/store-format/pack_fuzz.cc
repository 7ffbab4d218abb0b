// A pack's footer and trailer come from untrusted storage. The trailer's checksum is mended, so that the fuzzer gets
// past it.
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "base/check.h"
#include "store/pack/pack_format.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace still::store;
  const std::string input(reinterpret_cast<const char*>(data), size);
  if (size >= kPackTrailerSize) {
    std::string bytes = input.substr(size - kPackTrailerSize);
    const uint64_t checksum = XXH3_64bits(bytes.data(), kPackTrailerSize - 8);
    std::memcpy(bytes.data() + kPackTrailerSize - 8, &checksum, sizeof(checksum));
    auto trailer = ParseTrailer(bytes, size);
    STILL_CHECK(!trailer.ok() || trailer->footer_offset + trailer->footer_size + kPackTrailerSize == size);
  }
  constexpr uint64_t kFramesEnd = 1 << 20;
  auto footer = ParseFooter(input, kFramesEnd);
  if (!footer.ok()) return 0;
  for (const PackFrame& frame : footer->frames) STILL_CHECK(uint64_t{frame.offset} + frame.size <= kFramesEnd);
  uint64_t blocks = 0;
  for (uint32_t i = 0; i < footer->frames.size(); ++i) blocks += footer->BlocksIn(i);
  STILL_CHECK(blocks == footer->blocks.size());
  STILL_CHECK(EncodeFooter(*footer) == input);
  return 0;
}
