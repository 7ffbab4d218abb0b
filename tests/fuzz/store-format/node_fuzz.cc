// Tree nodes come from untrusted storage.
#include <cstdint>
#include <string>

#include "base/check.h"
#include "store/image/node.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace still::store;
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  size_t split = 0;
  for (absl::string_view node : SplitNodes(bytes)) split += node.size();
  STILL_CHECK(split <= size);
  auto leaf = ParseLeaf(bytes);
  if (leaf.ok()) {
    for (const BlockPlace& place : leaf->blocks) {
      STILL_CHECK(place.is_zero() || (place.pack < leaf->packs.size() && place.block < kMaxPackBlocks));
    }
    auto again = ParseLeaf(EncodeLeaf(*leaf));
    STILL_CHECK(again.ok() && again->packs == leaf->packs && again->blocks == leaf->blocks);
  }
  auto inner = ParseInner(bytes);
  if (inner.ok()) STILL_CHECK(EncodeInner(inner->level, inner->children) == bytes);
  return 0;
}
