// Frames come from untrusted storage. The input is decoded as each kind, as it is and with its checksum mended, so that
// the fuzzer gets past it.
#define XXH_STATIC_LINKING_ONLY  // For a state on the stack.
#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "base/check.h"
#include "store/block/frame.h"
#include "store/config.h"

namespace still::store {
namespace {

void Decode(FrameCodec& codec, FrameKind kind, uint32_t position, const std::string& frame) {
  auto payload = codec.Decode(kind, {.position = position}, frame);
  if (!payload.ok()) return;
  STILL_CHECK(payload->size() <= MaxPlainSize(kind));
  // What was accepted can be stored again.
  std::string again;
  codec.Encode(kind, {.position = position}, true, *payload, again);
  auto same = codec.Decode(kind, {.position = position}, again);
  STILL_CHECK(same.ok() && *same == *payload);
}

}  // namespace
}  // namespace still::store

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using still::store::FrameKind;
  static auto* const codec = new still::store::FrameCodec();
  std::string frame(reinterpret_cast<const char*>(data), size);
  (void)still::store::ParseConfig(frame);
  if (size >= still::store::kFrameHeaderSize) {
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    XXH3_64bits_update(&state, data, 24);
    XXH3_64bits_update(&state, data + still::store::kFrameHeaderSize, size - still::store::kFrameHeaderSize);
    const uint64_t checksum = XXH3_64bits_digest(&state);
    std::memcpy(frame.data() + 24, &checksum, sizeof(checksum));
  }
  (void)still::store::ParseConfig(frame);
  uint32_t position = 0;
  if (size >= 20) std::memcpy(&position, data + 16, sizeof(position));
  for (FrameKind kind : {FrameKind::kConfig, FrameKind::kGroup, FrameKind::kNodes, FrameKind::kFooter,
                         FrameKind::kManifest, FrameKind::kCondemned}) {
    still::store::Decode(*codec, kind, position, frame);
  }
  return 0;
}
